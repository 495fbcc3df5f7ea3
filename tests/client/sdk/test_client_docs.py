"""docs/reference/cli.md lists all commands. The code blocks of all pages are tested in tests/docs."""

from __future__ import annotations

import re
from pathlib import Path

from llava_cli import create_app
from typer.testing import CliRunner

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^llava-serve (\w+)", PAGE, re.MULTILINE)


def test_the_page_lists_exactly_the_existing_commands() -> None:
    shown = CliRunner().invoke(create_app(), ["--help"]).stdout
    for command in COMMANDS:
        assert f" {command} " in shown
    expected = "up ask chat models batch embed bench eval server worker keys top doctor dlq"
    assert set(expected.split()) == set(COMMANDS)
