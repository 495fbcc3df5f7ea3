"""Runs ``llava-serve`` as users do: as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

__all__ = ["MAIN", "start"]

MAIN = (sys.executable, "-c", "from llava_cli import main; main()")


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command with pipes for stdin, stdout and stderr unless told otherwise."""
    pipes: dict[str, Any] = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    environment = {**os.environ, "COLUMNS": "200", **options.pop("env", {})}
    return subprocess.Popen((*MAIN, *arguments), text=True, env=environment, **{**pipes, **options})
