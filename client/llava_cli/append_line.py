"""Appends to files of JSON lines so that an error leaves only complete lines."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["append_line"]


def append_line(path: Path, line: bytes, *, is_synced: bool = False) -> None:
    """Append ``line``, which ends with a newline. With ``is_synced``, wait until it is on the disk.

    Raises OSError, for example if the disk is full. The file is then unchanged.
    """
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        remaining = memoryview(line)
        try:
            while remaining:
                remaining = remaining[file.write(remaining) :]
            if is_synced:
                os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise
