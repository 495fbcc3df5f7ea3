"""The user's cache folder, for files that other users must not be able to change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["is_foreign", "make_private", "user_cache"]


def user_cache() -> Path:
    """Return the folder for the user's cached files. It may not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llava-serve"


def make_private(folder: Path) -> None:
    """Create the folder. Raises OSError if this fails, or if another user can write to the folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_foreign(folder.stat()):
        raise PermissionError(f"{folder} is owned or writable by another user")


def is_foreign(status: os.stat_result) -> bool:
    """Return whether another user owns, or can write to, the file or folder with this status."""
    return status.st_uid != os.getuid() or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
