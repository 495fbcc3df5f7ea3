"""The package's face: what it exports and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import llava_client


def test_every_exported_name_exists_and_the_list_is_sorted() -> None:
    assert llava_client.__all__ == sorted(llava_client.__all__)
    assert [name for name in llava_client.__all__ if not hasattr(llava_client, name)] == []


def test_the_sdk_imports_neither_the_command_line_nor_the_rest_of_the_project() -> None:
    unwanted = ("typer", "rich", "PIL", "redis", "torch", "llava_wire", "llava_server", "llava_worker")
    program = f"import sys, llava_client; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
