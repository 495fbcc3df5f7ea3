"""Stores packed weights in files, so that the next worker maps them instead of reading and quantizing them.

All workers of a user that load the same weights in the same format share one file and its memory. A file is
written once and never changed: it is written under another name, renamed when it is complete, and deleted
when it has not been used for 30 days or when its space is needed.

Files are trusted if only this user can write to them and to their folder. Accidental changes, such as a
truncated file, a disk error or data that was lost in a power failure, are detected by the size and the
checksum whenever a file is opened, and the file is then built again. A file that the same user changes while
a worker is using it is not detected.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from llava_worker.model.layers.embedding import Embedding
from llava_worker.model.layers.linear import DenseLinear, Linear
from llava_worker.model.loading.packed_file import (
    DamagedFile,
    MappedFile,
    file_bytes,
    map_file,
    uses_huge_pages,
    write_file,
)
from llava_worker.model.private_folder import make_private

__all__ = ["WeightsCache"]

# Files that have not been used for this time are deleted. Temporary files remain only if a process is killed.
_EXPIRY_S = {"*.weights": 30 * 86400, "*.step": 30 * 86400, "*.lock": 30 * 86400, "*.tmp": 86400}
_MAX_SHARE = 0.5  # of the free space and the space of the stored files that these files may use
_MAX_WAIT_S = 600.0  # for another process that is building the same file
_POLL_S = 0.1
_TRANSPARENT_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightsCache:
    """A folder with files of packed weights. Weights that use less than ``min_bytes`` are not stored."""

    folder: Path
    min_bytes: int = 0

    def load(self, model: nn.Module, key: str, fill: Callable[[], None]) -> int:
        """Load the parameters that belong to ``key``, and return how many bytes of them are in mapped files.

        If they are not stored, call ``fill``, which loads them from the checkpoint, and then store them. If
        they cannot be stored or mapped, the reason is logged once, and the parameters are in private memory.
        """
        parameters = list(model.parameters())
        if file_bytes(parameters) < self.min_bytes:
            fill()
            return 0
        path = self.folder / f"{key}.weights"
        with ExitStack() as locks:
            mapped, is_filled, is_available = None, False, True
            try:
                mapped = self._find(path, parameters, locks)
            except OSError as error:
                is_available = False
                self._log(error)
            if mapped is None:
                fill()
                is_filled = True
                mapped = self._store(path, parameters) if is_available else None
        if mapped is None:
            return 0
        if _is_slow(mapped.tensors[0]):
            logger.info("%s cannot be mapped with 2 MiB pages, so its memory is not shared", path)
            if not is_filled:
                _copy(mapped.tensors, parameters)
            return 0
        mapped.release_pages()
        _replace(model, parameters, mapped)
        logger.info("mapped %d MiB of packed weights from %s", file_bytes(parameters) >> 20, path)
        return file_bytes(parameters)

    def _find(self, path: Path, parameters: Sequence[Tensor], locks: ExitStack) -> MappedFile | None:
        """Return the stored parameters. If there are none, lock the file, so that only one process builds it.

        Raises OSError if the folder cannot be used, or if another process takes too long to build the file.
        """
        make_private(self.folder)
        with suppress(FileNotFoundError, DamagedFile):
            return _open(path, parameters)
        locks.enter_context(_lock(path.with_suffix(".lock")))
        try:
            return _open(path, parameters)  # another process may have built it in the meantime
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            logger.warning("packed weights are built again: %s", error)
            return None

    def _store(self, path: Path, parameters: Sequence[Tensor]) -> MappedFile | None:
        """Write the file and return the parameters in it, or None if this fails. The file must be locked."""
        size = file_bytes(parameters)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.unlink(missing_ok=True)  # of a process that was killed
            self._make_room(size)
            logger.info("storing %d MiB of packed weights in %s", size >> 20, path)
            try:
                write_file(temporary, parameters, _key_of(path))
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
            return _open(path, parameters)
        except (OSError, DamagedFile) as error:
            self._log(error)
            return None

    def _make_room(self, size: int) -> None:
        """Delete files that have expired and, if space is short, those that were used the longest ago.

        Raises OSError if ``size`` bytes are more than the files may use.
        """
        for pattern, expiry_s in _EXPIRY_S.items():
            for path in self.folder.glob(pattern):
                if _used_at(path) < time.time() - expiry_s:
                    path.unlink(missing_ok=True)
        stored = sorted(self.folder.glob("*.weights"), key=_used_at)
        num_used = sum(path.stat().st_size for path in stored)
        budget = int(_MAX_SHARE * (shutil.disk_usage(self.folder).free + num_used))
        while stored and num_used + size > budget:
            num_used -= stored[0].stat().st_size
            logger.info("deleting packed weights to free disk space: %s", stored[0])
            stored.pop(0).unlink(missing_ok=True)
        if size > budget:
            raise OSError(errno.ENOSPC, f"{size >> 20} MiB are more than half of the free space")

    def _log(self, error: OSError | DamagedFile) -> None:
        logger.warning(
            "the folder %s (weights_cache) is not used, so the next start takes longer: %s",
            self.folder,
            error,
        )


def _key_of(path: Path) -> bytes:
    return bytes.fromhex(path.stem)


def _used_at(path: Path) -> float:
    """Return when a worker last opened or created the file."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _open(path: Path, parameters: Sequence[Tensor]) -> MappedFile:
    """Return the parameters in the file. Raises the exceptions of `map_file`."""
    mapped = map_file(path, parameters, _key_of(path))
    with suppress(OSError):  # for example, on a read-only file system
        os.utime(path)
    return mapped


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until this process has locked the file. The lock ends with the process.

    Raises TimeoutError, which is an OSError, if another process holds the lock for too long.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if not _try_lock(file):
            logger.info("waiting for another process that is storing packed weights (it locked %s)", path)
            _wait_for_lock(file, path)
        yield
    finally:
        os.close(file)


def _wait_for_lock(file: int, path: Path) -> None:
    deadline = time.monotonic() + _MAX_WAIT_S
    while not _try_lock(file):
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process has locked {path} for {_MAX_WAIT_S:.0f} s")
        time.sleep(_POLL_S)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_slow(mapped: Tensor) -> bool:
    """Return whether private memory would be faster, because only private memory can use huge pages."""
    try:
        is_enabled = "[never]" not in _TRANSPARENT_HUGE_PAGES.read_text()
    except OSError:  # not Linux, or without support for huge pages
        return False
    return is_enabled and not uses_huge_pages(mapped)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.data.copy_(source)


def _replace(model: nn.Module, parameters: Sequence[Tensor], mapped: MappedFile) -> None:
    """Replace the storage of the parameters.

    The rows of an embedding table are read from the file, unless the table is also the output layer's weight.
    """
    modules = list(model.modules())
    tied = {module.weight for module in modules if isinstance(module, DenseLinear)}
    for module in modules:
        if isinstance(module, Embedding) and module.weight not in tied:
            index = next(index for index, each in enumerate(parameters) if each is module.weight)
            module.read_row = partial(mapped.read_row, index)
    for parameter, tensor in zip(parameters, mapped.tensors, strict=True):
        parameter.data = tensor
    for module in modules:
        if isinstance(module, Linear):
            module.use_parameters()
