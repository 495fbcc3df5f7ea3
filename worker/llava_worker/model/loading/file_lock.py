"""A lock that excludes other processes. It ends with the process, or when it is no longer referenced."""

from __future__ import annotations

import fcntl
import logging
import os
import time
import weakref
from pathlib import Path

__all__ = ["FileLock"]

_POLL_S = 0.1

logger = logging.getLogger(__name__)


class FileLock:
    """An exclusive lock on a file, which is created if it does not exist."""

    def __init__(self, path: Path, *, max_wait_s: float, purpose: str) -> None:
        """Wait until this process has locked the file. ``purpose`` is what another one does, in the log.

        Raises TimeoutError, which is an OSError, if another process holds the lock for too long.
        """
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._close = weakref.finalize(self, os.close, file)
        os.utime(file)  # old files are deleted (`UnstoredWeights.store`)
        if _try_lock(file):
            return
        logger.info("waiting for another process to %s (it has locked %s)", purpose, path)
        deadline = time.monotonic() + max_wait_s
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has locked {path} for {max_wait_s:.0f} s")
            time.sleep(_POLL_S)

    def release(self) -> None:
        """Release the lock. Does nothing if it was released before."""
        self._close()


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
