"""The exports, imports and types of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import llava_client
import pytest

from tests.machine_speed import scaled

TYPED_PROGRAM = Path(__file__).with_name("typed_program.py")


def test_every_exported_name_exists_and_the_list_is_sorted() -> None:
    assert llava_client.__all__ == sorted(llava_client.__all__)
    assert [name for name in llava_client.__all__ if not hasattr(llava_client, name)] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'llava_client' has no attribute 'Clients'"):
        llava_client.Clients  # noqa: B018


def test_the_sdk_imports_neither_the_command_line_nor_the_rest_of_the_project() -> None:
    unwanted = ("typer", "rich", "PIL", "redis", "torch", "llava_wire", "llava_server", "llava_worker")
    program = (
        f"from llava_client import *; import sys; print([name for name in {unwanted} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_program_outside_the_repository_is_type_checked_strictly(tmp_path: Path) -> None:
    """mypy finds the package on the interpreter's path, as it does after a pip install.

    It uses the package's type annotations only if the package contains py.typed.
    """
    program = shutil.copy(TYPED_PROGRAM, tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", program]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=scaled(100)
    )
    assert done.stdout.startswith("Success: no issues found"), done.stdout + done.stderr
