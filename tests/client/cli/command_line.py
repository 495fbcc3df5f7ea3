"""Runs ``llava-serve`` in a separate process, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

__all__ = ["MAIN", "start"]

MAIN = (sys.executable, "-c", "from llava_cli import main; main()")


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command. stdin, stdout and stderr are pipes by default."""
    pipes: dict[str, Any] = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    environment = {**os.environ, "COLUMNS": "200", **options.pop("env", {})}
    return subprocess.Popen((*MAIN, *arguments), text=True, env=environment, **{**pipes, **options})
