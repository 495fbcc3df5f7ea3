"""Static checks for banned constructs in the source code."""

from __future__ import annotations

import ast

import pytest

from tests.test_architecture import ROOT, sources

SERVED = [path for path in sources() if path.relative_to(ROOT).parts[0] not in ("tools", "bench")]
BANNED_MODULES = {"pickle", "dill", "marshal", "shelve", "cloudpickle", "yaml", "xml"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"}
# Pickled checkpoints require the setting allow_pickle and are loaded with torch's restricted unpickler.
ALLOWED = {("worker/llava_worker/model/loading/checkpoint_files.py", "torch.load")}


def banned(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED_MODULES:
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
            found.add(ast.unparse(node.func))
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code"):
            found |= {node.arg} if ast.unparse(node.value) == "True" else set()
    return found


def test_no_module_executes_data_as_code() -> None:
    found = {
        (str(path.relative_to(ROOT)), name) for path in SERVED for name in banned(path.read_text("utf-8"))
    }
    assert found <= ALLOWED, found - ALLOWED


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from yaml import load", "eval('1')", "torch.load(f)", "run(x, shell=True)"],
)
def test_each_banned_construct_is_found(source: str) -> None:
    assert banned(source)


def checks_of_input(source: str) -> list[str]:
    """Return all asserts except type checker hints.

    Asserts must not check input: ``python -O`` removes them.
    """
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert)
        and not ast.unparse(node.test).startswith("isinstance(")
        and " is not None" not in ast.unparse(node.test)
    ]


def test_input_checks_do_not_use_assert() -> None:
    paths = [path for path in SERVED if path.relative_to(ROOT).parts[0] in ("wire", "server")]
    assert {str(path): found for path in paths if (found := checks_of_input(path.read_text("utf-8")))} == {}


def test_a_check_with_assert_is_found() -> None:
    assert checks_of_input("assert size < 10, 'too large'")
