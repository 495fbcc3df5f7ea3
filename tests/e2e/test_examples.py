"""The programs in examples/, as they stand, against the bundled model: each prints the answer and ends.

The OpenAI and Anthropic packages are always here; the others are run where they are installed
(``pip install -e '.[clients]'``, and LiteLLM in an environment of its own, for its pins are not ours).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.drawing import draw
from tiny.scenes import sample_scene

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FOLDER = Path(__file__).parents[2] / "examples"
PROGRAMS = {  # and what each needs
    "openai_chat.py": "openai",
    "openai_responses.py": "openai",
    "openai_batch.py": "openai",
    "anthropic_messages.py": "anthropic",
    "langchain_chat.py": "langchain_openai",
    "litellm_chat.py": "litellm",
    "llm_endpoint.sh": "llm",
}
QUESTION = "What color is the circle?"


def run(program: str, server: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Skips where its package is not installed."""
    if importlib.util.find_spec(PROGRAMS[program]) is None:
        pytest.skip(f"{PROGRAMS[program]} is not installed")
    keys = {"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none"}
    places = {"OPENAI_BASE_URL": f"{server}/v1", "ANTHROPIC_BASE_URL": server}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    interpreter = "sh" if program.endswith(".sh") else sys.executable
    environment = {**os.environ, **places, **keys, "PATH": path, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [interpreter, FOLDER / program, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    draw(sample_scene("clients", 0)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def printed_by_openai(tiny_server: str, picture: str) -> str:
    return run("openai_chat.py", tiny_server, picture, QUESTION).stdout


def test_every_example_is_run_here() -> None:
    programs = [path.name for suffix in ("py", "sh") for path in FOLDER.glob(f"*.{suffix}")]
    assert sorted(programs) == sorted(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_example_prints_the_same_answer(
    program: str, tiny_server: str, picture: str, printed_by_openai: str
) -> None:
    done = run(program, tiny_server, picture, QUESTION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stdout.strip() == printed_by_openai.strip()


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "litellm_chat.py"])
def test_an_example_without_a_server_fails(program: str, picture: str) -> None:
    assert run(program, "http://127.0.0.1:9", picture, QUESTION).returncode != 0
