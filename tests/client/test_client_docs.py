"""The examples of docs/client.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from llava_client.cli import app
from typer.testing import CliRunner

from tests.client.scripted_peer import PNG, TEXT, Peer

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^llava-serve (\w+)", PAGE, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_each_python_example_prints_the_answer(
    number: int, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.png").write_bytes(PNG)
    monkeypatch.setenv("LLAVA_BASE_URL", peer.url)
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLES[number]],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert TEXT in done.stdout


def test_the_page_shows_every_command_and_no_other() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for command in COMMANDS:
        assert f" {command} " in shown
    assert {"up", "ask", "chat", "models", "bench", "server", "worker", "top", "doctor", "dlq"} == set(
        COMMANDS
    )
