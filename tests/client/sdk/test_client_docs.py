"""The examples in docs/client.md run unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from llava_cli import app
from typer.testing import CliRunner

from tests.client.scripted_server import PNG, TEXT, ScriptedServer
from tests.machine_speed import scaled
from tests.server.conftest import Stack

PAGE = (Path(__file__).parents[3] / "docs" / "client.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SERVED = [example for example in EXAMPLES if "_batch(" in example or "embed(" in example]
CHATS = [example for example in EXAMPLES if example not in SERVED]
COMMANDS = re.findall(r"^llava-serve (\w+)", PAGE, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(CHATS)))
def test_each_python_example_prints_the_response(
    number: int, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_BASE_URL", server.url)
    assert TEXT in output_of(CHATS[number], tmp_path, monkeypatch)


@pytest.mark.parametrize("number", range(len(SERVED)))
def test_each_example_for_other_routes_runs_on_a_real_server(
    number: int, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_BASE_URL", stack.server.url)
    assert (
        "What is this?" in (text := output_of(SERVED[number], tmp_path, monkeypatch)) or "completed" in text
    )


def output_of(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "photo.png").write_bytes(PNG)
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=scaled(60),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_page_lists_exactly_the_existing_commands() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for command in COMMANDS:
        assert f" {command} " in shown
    expected = "up ask chat models batch embed bench server worker keys top doctor dlq"
    assert set(expected.split()) == set(COMMANDS)
