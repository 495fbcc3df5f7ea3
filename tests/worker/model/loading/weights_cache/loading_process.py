"""A process that loads a model with a weights cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.worker.model.loading.weights_cache import program


class Program:
    """A process that runs program."""

    def __init__(self, folder: Path, cache: Path, precision: str = "int8") -> None:
        arguments = [str(folder), str(cache), precision]
        self.process = subprocess.Popen(
            [sys.executable, "-m", program.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def opens(pid: int, path: Path) -> bool:
    """Return whether the process has opened the file."""
    return any(_target(each) == str(path) for each in Path(f"/proc/{pid}/fd").iterdir())


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:  # closed in the meantime
        return ""
