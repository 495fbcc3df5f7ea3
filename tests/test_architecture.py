"""Rules that linters do not enforce: file and function sizes, module names, py.typed and imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "wire/llava_wire",
    "server/llava_server",
    "worker/llava_worker",
    "client/llava_client",
    "client/llava_cli",
]
MAX_FILE_LINES = 500  # a longer file must state the reason in its docstring, after the words below
REASON = "One file because"
MAX_FUNCTION_LINES = 60
BENCH_ENVIRONMENTS = ROOT / "bench" / "work"  # git-ignored: virtual environments of other servers
GRAB_BAGS = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}


def sources() -> list[Path]:
    """Return the modules of the packages, tools and benchmarks."""
    folders = [*PACKAGES, "tools", "bench"]
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if BENCH_ENVIRONMENTS not in path.parents]


def files() -> list[Path]:
    """Return all sources and tests, and the scripts, style sheets and HTML pages in the packages."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    scripts = [
        path
        for end in ("*.lua", "*.js", "*.css", "*.html")
        for path in sorted(ROOT.glob(f"*/llava_*/**/{end}"))
    ]
    return sources() + tests + scripts


def long_functions(source: str) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]


def is_too_long(source: str) -> bool:
    return len(source.splitlines()) > MAX_FILE_LINES and REASON not in source


def test_a_file_longer_than_500_lines_states_its_reason() -> None:
    assert [str(path.relative_to(ROOT)) for path in files() if is_too_long(path.read_text())] == []


def test_a_file_of_501_lines_without_a_reason_is_found() -> None:
    assert is_too_long("x = 1\n" * 501)
    assert not is_too_long("x = 1\n" * 500)
    assert not is_too_long(f'"""A table. {REASON} its rows are compared."""\n' + "x = 1\n" * 501)


def test_no_function_is_longer_than_sixty_lines() -> None:
    found = {str(path.relative_to(ROOT)): long_functions(path.read_text()) for path in sources()}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_a_function_of_sixty_one_lines_is_found() -> None:
    body = "\n".join(f"    x = {i}" for i in range(MAX_FUNCTION_LINES))
    assert long_functions(f"def f():\n{body}\n") == ["f, line 1"]


def test_no_module_is_a_grab_bag() -> None:
    assert [path for path in sources() if path.stem in GRAB_BAGS or path.parent.name in GRAB_BAGS] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_declares_its_types_to_type_checkers(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("llava_wire", ["torch", "fastapi", "httpx2", "transformers", "PIL"]),
        ("llava_server.app", ["torch", "transformers", "tokenizers", "llava_worker", "llava_client"]),
        ("llava_worker.worker", ["torch", "fastapi", "uvicorn", "httpx2", "llava_server"]),
        ("llava_worker.language.jinja_template", ["torch", "transformers", "jinja2", "redis"]),
        ("llava_client", ["torch", "fastapi", "redis", "llava_wire", "llava_server", "PIL"]),
        ("llava_cli", ["torch", "fastapi", "redis", "llava_wire", "llava_server"]),
        ("llava_worker.engine.core.scheduler", ["torch", "redis"]),
        ("llava_worker.engine.speculation.speculative_decoding", ["torch", "redis"]),
        ("llava_worker.model.llava", ["llava_wire", "redis", "transformers", "flash_attn", "bitsandbytes"]),
    ],
)
def test_a_module_does_not_import_what_it_must_not_depend_on(module: str, forbidden: list[str]) -> None:
    """Import the module in a new interpreter, so that indirect imports are detected."""
    program = f"import {module}, sys; print([name for name in {forbidden!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
