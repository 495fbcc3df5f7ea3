"""Weights that were read from a checkpoint and are to be stored in the weights cache.

The model can be used before its weights are stored, so that a first start does not wait for the disk:

    store   in a thread of its own: write the file, map it and verify it
    use     in the engine's thread, between two steps: replace the parameters with those in the file
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from llava_worker.model.available_memory import available_bytes
from llava_worker.model.loading.cached_file import is_slow, key_of, open_file, use_mapped
from llava_worker.model.loading.file_lock import FileLock
from llava_worker.model.loading.packed_file import DamagedFile, MappedFile, file_bytes, write_file
from llava_worker.selection_log import log_private_weights

__all__ = ["UnstoredWeights"]

# Files that have not been used for this time are deleted. Temporary files remain only if a process is killed.
_EXPIRY_S = {"*.weights": 30 * 86400, "*.step": 30 * 86400, "*.lock": 30 * 86400, "*.tmp": 86400}
_MAX_SHARE = 0.5  # of the free space and the space of the stored files that these files may use

logger = logging.getLogger(__name__)


class _Cancelled(Exception):
    pass


class UnstoredWeights:
    """The parameters of a loaded model that belong into the file ``path``.

    Until `store` returns, or until this object is no longer referenced, ``lock`` makes other processes wait
    for the file.
    """

    def __init__(self, model: nn.Module, path: Path, lock: FileLock) -> None:
        self._model = model
        self._parameters = list(model.parameters())
        self._path = path
        self._lock = lock
        self._is_cancelled = threading.Event()

    def store_now(self) -> int:
        """Store the parameters and use them. Return how many bytes are in the mapped file."""
        mapped = self.store()
        if mapped is None:
            return 0
        self.use(mapped)
        return file_bytes(self._parameters)

    def store(self) -> MappedFile | None:
        """Write the file and return the parameters in it, or None if they should not be used.

        If the file cannot be written, the reason is logged. Does not run torch's kernels, whose threads the
        engine may be using.
        """
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.unlink(missing_ok=True)  # of a process that was killed
            size = file_bytes(self._parameters)
            # Otherwise, parts of the file could leave the page cache, and steps would wait for the disk.
            free = available_bytes(torch.device("cpu"))
            has_memory = free is None or free >= size
            _make_room(self._path.parent, size)
            logger.info("storing %d MiB of packed weights in %s", size >> 20, self._path)
            try:
                write_file(temporary, self._parameters, key_of(self._path), self._check_cancelled)
                temporary.rename(self._path)
            finally:
                temporary.unlink(missing_ok=True)
            if not has_memory:
                logger.info(
                    "%s is used from the next start on, because there is too little free memory", self._path
                )
                return None
            mapped = open_file(self._path, self._parameters, self._check_cancelled)
        except _Cancelled:
            return None
        except (OSError, DamagedFile, MemoryError) as error:
            log_private_weights(self._path.parent, error)
            if isinstance(error, DamagedFile):
                with suppress(OSError):
                    self._path.unlink()
            return None
        finally:
            self._lock.release()
        if is_slow(mapped, self._path):
            return None
        mapped.release_pages()
        return mapped

    def use(self, mapped: MappedFile) -> list[Tensor]:
        """Replace the parameters with those in the file, which are equal. Return the previous ones.

        Must be called in the thread that uses the model.
        """
        previous = [parameter.data for parameter in self._parameters]
        use_mapped(self._model, mapped, self._path)
        return previous

    def cancel(self) -> None:
        """Let `store`, which may be running in another thread, return None without storing anything."""
        self._is_cancelled.set()

    def _check_cancelled(self) -> None:
        if self._is_cancelled.is_set():
            raise _Cancelled


def _make_room(folder: Path, size: int) -> None:
    """Delete files that have expired and, if space is short, those that were used the longest ago.

    Raises OSError if ``size`` bytes are more than the files may use.
    """
    for pattern, expiry_s in _EXPIRY_S.items():
        for path in folder.glob(pattern):
            if _used_at(path) < time.time() - expiry_s:
                path.unlink(missing_ok=True)
    stored = sorted(folder.glob("*.weights"), key=_used_at)
    num_used = sum(map(_size, [*stored, *folder.glob("*.tmp")]))  # other processes may be writing the latter
    budget = int(_MAX_SHARE * (shutil.disk_usage(folder).free + num_used))
    if size > budget:
        raise OSError(errno.ENOSPC, f"{size >> 20} MiB are more than half of the free space")
    while stored and num_used + size > budget:
        num_used -= _size(stored[0])
        logger.info("deleting packed weights to free disk space: %s", stored[0])
        stored.pop(0).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Return the size of a file, or 0 if another process has deleted it."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _used_at(path: Path) -> float:
    """Return when a worker last opened or created the file."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
