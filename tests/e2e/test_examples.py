"""The programs in examples/ run unmodified against the bundled model and must print the correct answer.

The dev extra installs the packages that the programs require, except for LiteLLM, which ``make test``
installs.
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
PROGRAMS = (
    "openai_chat.py",
    "openai_responses.py",
    "openai_batch.py",
    "anthropic_messages.py",
    "langchain_chat.py",
    "litellm_chat.py",
    "llm_endpoint.sh",
)
SCENE = sample_scene("clients", 0)
[CIRCLE] = [item for item in SCENE.objects if item.shape == "circle"]
QUESTION, ANSWER = "What color is the circle?", f"The circle is {CIRCLE.colour}."


def run(program: str, server: str, image: Path) -> subprocess.CompletedProcess[str]:
    """Run an example. Skip the test if the example requires LiteLLM and LiteLLM is not installed."""
    if program == "litellm_chat.py" and importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed; make test installs it in addition to the dev extra")
    keys = {"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none"}
    addresses = {
        "OPENAI_BASE_URL": f"{server}/v1",
        "ANTHROPIC_BASE_URL": server,
        "LLM_USER_PATH": str(image.parent),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    interpreter = "sh" if program.endswith(".sh") else sys.executable
    environment = {**os.environ, **addresses, **keys, "PATH": path, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [interpreter, str(FOLDER / program), str(image), QUESTION]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    draw(SCENE).save(path)
    return path


def test_every_example_is_tested() -> None:
    programs = [path.name for suffix in ("py", "sh") for path in FOLDER.glob(f"*.{suffix}")]
    assert sorted(programs) == sorted(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_example_prints_the_correct_answer(program: str, tiny_server: str, image: Path) -> None:
    result = run(program, tiny_server, image)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ANSWER


# The LiteLLM example is excluded. It takes seconds to start and uses the same client as openai_chat.py.
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "litellm_chat.py"])
def test_an_example_without_a_server_fails(program: str, image: Path) -> None:
    result = run(program, "http://127.0.0.1:9", image)
    assert result.returncode != 0
    assert not result.stdout.strip()
