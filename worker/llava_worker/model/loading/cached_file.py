"""A file in the weights cache, whose name is the key of the weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from llava_worker.model.layers.embedding import Embedding
from llava_worker.model.layers.linear import DenseLinear, HasParameters
from llava_worker.model.loading.packed_file import (
    MappedFile,
    file_bytes,
    map_file,
    uses_huge_pages,
)

__all__ = ["is_slow", "key_of", "open_file", "use_mapped"]

_TRANSPARENT_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

logger = logging.getLogger(__name__)


def key_of(path: Path) -> bytes:
    return bytes.fromhex(path.stem)


def open_file(
    path: Path, parameters: Sequence[Tensor], on_chunk: Callable[[], object] = lambda: None
) -> MappedFile:
    """Return the parameters in the file. Raises the exceptions of `map_file`."""
    mapped = map_file(path, parameters, key_of(path), on_chunk)
    with suppress(OSError):  # for example, on a read-only file system
        os.utime(path)
    return mapped


def is_slow(mapped: MappedFile, path: Path) -> bool:
    """Return whether private memory would be faster, because only private memory can use huge pages."""
    try:
        is_enabled = "[never]" not in _TRANSPARENT_HUGE_PAGES.read_text()
    except OSError:  # not Linux, or without support for huge pages
        return False
    if not is_enabled or uses_huge_pages(mapped.tensors[0]):
        return False
    logger.info("%s is not in memory in pages of 2 MiB, so its memory is not shared", path)
    return True


def use_mapped(model: nn.Module, mapped: MappedFile, path: Path) -> None:
    """Replace the storage of the model's parameters with the mapped file.

    The rows of an embedding table are read from the file, unless the table is also the output layer's weight.
    """
    modules, parameters = list(model.modules()), list(model.parameters())
    tied = {module.weight for module in modules if isinstance(module, DenseLinear)}
    for module in modules:
        if isinstance(module, Embedding) and module.weight not in tied:
            index = next(index for index, each in enumerate(parameters) if each is module.weight)
            module.read_row = partial(mapped.read_row, index)
    for parameter, tensor in zip(parameters, mapped.tensors, strict=True):
        parameter.data = tensor
    for module in modules:
        if isinstance(module, HasParameters):
            module.use_parameters()
    logger.info("mapped %d MiB of packed weights from %s", file_bytes(parameters) >> 20, path)
