"""The programs in examples/, as they stand, against the bundled model: each prints the answer and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.drawing import draw
from tiny.scenes import sample_scene

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FOLDER = Path(__file__).parents[2] / "examples"
PROGRAMS = ("openai_chat.py", "openai_responses.py", "anthropic_messages.py")
QUESTION = "What color is the circle?"


def run(program: str, server: str, *words: str) -> subprocess.CompletedProcess[str]:
    places = {"OPENAI_BASE_URL": f"{server}/v1", "ANTHROPIC_BASE_URL": server}
    keys = {"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none"}
    command = [sys.executable, FOLDER / program, *words]
    environment = {**os.environ, **places, **keys}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_example_is_run_here() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.py")) == sorted(PROGRAMS)


def test_every_example_prints_the_same_answer(tiny_server: str, tmp_path: Path) -> None:
    picture = tmp_path / "scene.png"
    draw(sample_scene("clients", 0)).save(picture)
    printed = set()
    for program in PROGRAMS:
        done = run(program, tiny_server, str(picture), QUESTION)
        assert done.returncode == 0, done.stderr
        printed.add(done.stdout)
    assert len(printed) == 1
    assert printed.pop().strip()


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_without_a_server_fails(program: str, tmp_path: Path) -> None:
    picture = tmp_path / "scene.png"
    draw(sample_scene("clients", 0)).save(picture)
    assert run(program, "http://127.0.0.1:9", str(picture), QUESTION).returncode != 0
