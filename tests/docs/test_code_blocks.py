"""All shell and Python code blocks in the documentation run as written, against the bundled model.

The blocks of a page run in order in one folder, which contains the files of the repository. Each block runs
in its own process, so a reader can copy a single block. Only the address of the server is replaced.

A block that cannot run here has a comment ``<!-- not executed: REASON -->`` with one of a few reasons. Its
commands are still checked: the shell must be able to parse them, and the options and files must exist.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.docs.code_blocks import CodeBlock, code_blocks
from tests.processes import running_site
from tests.wire.redis_server import running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    # tests/interop runs the examples in clients.md, because each requires an environment of its own.
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "clients.md"),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("worker/**/README.md")),
]
BLOCKS = [block for page in PAGES for block in code_blocks(page, ROOT)]
EXECUTED = [block for block in BLOCKS if block.language in ("python", "sh")]
RUNNABLE_PAGES = sorted({block.page for block in EXECUTED if block.reason is None})
REASONS = {
    "clones the repository",
    "downloads a model",
    "requires Docker",
    "requires a cluster",
    "requires Helm",
    "requires a model of your own",
    "requires a second machine",
    "runs until it is stopped",
    "runs the test suite",
    "takes minutes",
}
LANGUAGES = {"python", "sh", "json", "nginx", "nftables", "text"}
SERVER = "http://127.0.0.1:8000"
ERROR = re.compile(r'"error": ?\{')
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables that lead to a server with the bundled model, and to its Redis."""
    folder = tmp_path_factory.mktemp("site")
    worker = {"model": "tiny", "device": "cpu", "threads": 1, "precision": "fp32"}
    with running_redis() as url, running_site(url, folder, **worker) as controller:
        yield {
            "LLAVA_BASE_URL": controller.url,
            "LLAVA_REDIS_URL": url,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with links to everything in the repository, in which blocks can create files."""
    for path in ROOT.iterdir():
        if not path.name.startswith((".git", ".venv", "build", "dist")):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run(block: CodeBlock, folder: Path, site: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = block.code.replace(SERVER, site["LLAVA_BASE_URL"])
    command = (
        [sys.executable, "-c", code]
        if block.language == "python"
        else ["bash", "-euo", "pipefail", "-c", code]
    )
    environment = {**os.environ, **site, "TERM": "dumb", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("page", RUNNABLE_PAGES)
def test_every_code_block_runs_as_written(page: str, folder: Path, site: dict[str, str]) -> None:
    for block in EXECUTED:
        if block.page == page and block.reason is None:
            result = run(block, folder, site)
            assert result.returncode == 0, f"{block.name}\n{block.code}\n{result.stdout}\n{result.stderr}"
            assert not ERROR.search(result.stdout), f"{block.name}\n{result.stdout}"  # curl exits with 0


def test_a_block_that_fails_is_detected(folder: Path, site: dict[str, str]) -> None:
    for language, code in (("python", "client.files"), ("sh", "false | true"), ("sh", "llava-serve nothing")):
        assert run(CodeBlock("page.md", 1, language, code, None), folder, site).returncode != 0
    rejected = CodeBlock("page.md", 1, "sh", f"curl {SERVER}/v1/models/none", None)
    assert ERROR.search(run(rejected, folder, site).stdout)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_code_block_has_a_known_language_and_reason(block: CodeBlock) -> None:
    assert block.language in LANGUAGES
    assert block.reason is None or (block.reason in REASONS and block.language in ("python", "sh"))


@pytest.mark.parametrize("block", [b for b in EXECUTED if b.reason], ids=lambda block: block.name)
def test_a_block_that_is_not_executed_names_existing_options_and_files(block: CodeBlock) -> None:
    assert block.language == "sh"
    assert invalid_commands(block.code) == []


def invalid_commands(code: str) -> list[str]:
    """Return what is wrong with the commands of a shell script, without running them."""
    parsed = subprocess.run(["bash", "-n", "-c", code], capture_output=True, text=True, check=False)
    if parsed.returncode:
        return [parsed.stderr]
    problems: list[str] = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        problems += [f"no file {path}" for path in _named_files(words) if not (ROOT / path).exists()]
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if words[:1] == ["llava-serve"]:
            problems += _unknown_options(words[1:])
        if words[:1] == ["make"]:
            targets = [word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)]
            problems += [f"no target {name}" for name in targets if not _has_target(name)]
    return problems


def _named_files(words: Sequence[str]) -> list[str]:
    return [
        word
        for word in words
        if re.match(r"(?:deploy|examples|tools|tests|docker-compose)\b[\w/.-]*\.", word)
    ]


def _unknown_options(words: Sequence[str]) -> list[str]:
    names = [word for word in words if re.fullmatch(r"[a-z-]+", word)]
    command = names[: 2 if names[:1] in (["keys"], ["dlq"]) else 1]
    shown = _help_of(*command)
    if shown is None:
        return [f"no command {' '.join(command)}"]
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [f"no option {option} of {' '.join(command)}" for option in options if option not in shown]


@functools.cache
def _help_of(*command: str) -> str | None:
    """Return the options of a command, or None if there is no such command."""
    shown = subprocess.run(
        [BIN / "llava-serve", *command, "--help"],
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=False,
    )
    return None if shown.returncode else shown.stdout


def _has_target(name: str) -> bool:
    return re.search(rf"^{name}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE) is not None


@pytest.mark.parametrize(
    "code",
    [
        "llava-serve up --no-such-option",
        "llava-serve nothing",
        "make nothing",
        "docker compose -f deploy/nothing.yaml up",
        "if true; do",
    ],
)
def test_wrong_commands_are_found(code: str) -> None:
    assert invalid_commands(code)
