"""The user's cache folder, for files that other users must not be able to change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["make_private", "open_private", "user_cache"]


def user_cache() -> Path:
    """Return the folder for the user's cached files. It may not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llava-serve"


def make_private(folder: Path) -> None:
    """Create the folder. Raises OSError if this fails, or if another user can write to the folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_private(folder, folder.stat())


def open_private(path: Path) -> int:
    """Open a file in the folder for reading, and return its descriptor. Symbolic links are not followed.

    Raises OSError if this fails, if it is not a regular file, or if another user can write to it.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO must not block
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        _require_private(path, status)
    except BaseException:
        os.close(file)
        raise
    return file


def _require_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to the user {status.st_uid}, not to {os.getuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"other users can write to {path} (mode {mode:o}); run chmod go-w {path}")
