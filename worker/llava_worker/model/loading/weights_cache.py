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

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from llava_worker.model.loading.cached_file import is_slow, open_file, use_mapped
from llava_worker.model.loading.file_lock import FileLock
from llava_worker.model.loading.packed_file import DamagedFile, MappedFile, file_bytes
from llava_worker.model.loading.unstored_weights import UnstoredWeights
from llava_worker.model.private_folder import make_private
from llava_worker.selection_log import log_private_weights

__all__ = ["CachedWeights", "WeightsCache"]

_MAX_WAIT_S = 600.0  # for another process that is building the same file

logger = logging.getLogger(__name__)


class CachedWeights(NamedTuple):
    """How parameters were loaded: ``mapped_bytes`` are in mapped files, and ``unstored`` can be stored."""

    mapped_bytes: int = 0
    unstored: UnstoredWeights | None = None


@dataclass(frozen=True, slots=True)
class WeightsCache:
    """A folder with files of packed weights. Weights that use less than ``min_bytes`` are not stored."""

    folder: Path
    min_bytes: int = 0

    def load(self, model: nn.Module, key: str, fill: Callable[[], None]) -> CachedWeights:
        """Load the parameters that belong to ``key``.

        If they are not stored, call ``fill``, which loads them from the checkpoint. If the folder cannot be
        used, the reason is logged.
        """
        parameters = list(model.parameters())
        if file_bytes(parameters) < self.min_bytes:
            fill()
            return CachedWeights()
        path = self.folder / f"{key}.weights"
        try:
            found = self._find(path, parameters)
        except OSError as error:
            log_private_weights(self.folder, error)
            fill()
            return CachedWeights()
        if isinstance(found, FileLock):
            fill()
            return CachedWeights(unstored=UnstoredWeights(model, path, found))
        if is_slow(found, path):
            _copy(found.tensors, parameters)
            return CachedWeights()
        found.release_pages()
        use_mapped(model, found, path)
        return CachedWeights(file_bytes(parameters))

    def _find(self, path: Path, parameters: Sequence[Tensor]) -> MappedFile | FileLock:
        """Return the stored parameters. If there are none, lock the file, so that only one process builds it.

        Raises OSError if the folder cannot be used, or if another process takes too long to build the file.
        """
        make_private(self.folder)
        with suppress(FileNotFoundError, DamagedFile):
            return open_file(path, parameters)
        lock = FileLock(
            path.with_suffix(".lock"),
            max_wait_s=_MAX_WAIT_S,
            purpose="load and store the packed weights",
        )
        try:
            return open_file(path, parameters)  # another process may have built it in the meantime
        except FileNotFoundError:
            return lock
        except DamagedFile as error:
            logger.warning("packed weights are built again: %s", error)
            return lock


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.data.copy_(source)
