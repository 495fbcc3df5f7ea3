"""A lock that one process at a time can hold. The operating system releases it when the process exits."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock, which is the file ``path``. The file is removed at the end.

    Raises BlockingIOError if another process holds the lock, or OSError if the file cannot be created.
    """
    while True:
        with path.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(lock.fileno(), path):
                continue  # the previous holder removed the file after this process opened it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
