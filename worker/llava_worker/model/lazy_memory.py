"""Large CPU allocations that are faulted in incrementally.

Linux allocates each page of memory when it is first written. On a virtual machine, the host also has to
allocate the page, which can limit the speed to 0.3 GB/s (docs/log.md). While the worker is idle, it therefore
faults in the pages that the next requests may need.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

__all__ = ["lazy_zeros", "prefault_columns", "zeros"]

_CHUNK_BYTES = 2 << 20  # one huge page
_MIN_LAZY_BYTES = 128 << 10  # from this size on, malloc maps pages for each allocation, too
_PAGE_BYTES = mmap.PAGESIZE


def zeros(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, is_growing: bool = False
) -> Tensor:
    """Return a tensor of zeros. If it is large and on a CPU, no pages are faulted in.

    See `lazy_zeros` for ``is_growing``.
    """
    if device.type == "cpu" and prod(shape) * dtype.itemsize >= _MIN_LAZY_BYTES:
        return lazy_zeros(shape, dtype, is_growing=is_growing)
    return torch.zeros(shape, dtype=dtype, device=device)


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype, *, is_growing: bool = False) -> Tensor:
    """Return a CPU tensor of zeros with no pages faulted in.

    If possible, it has pages of 2 MiB, which speeds up reading. If ``is_growing`` is true, the tensor is
    filled in many small parts. It is then in shared memory. On most systems, this memory has only pages of
    4 KiB, which are faulted in faster than those of private memory.

    Raises OSError or OverflowError if the tensor is too large.
    """
    size = prod(shape) * dtype.itemsize
    if is_growing or not hasattr(mmap, "MAP_ANONYMOUS"):
        memory = mmap.mmap(-1, size)
    else:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the operating system does not support huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def prefault_columns(rows: Tensor, start: int, end: int) -> Iterator[Tensor]:
    """Fault in columns [start, end) of ``rows`` [rows, columns, ...] without changing the contents.

    Each step of the iterator faults in one chunk of one row. Consecutive steps process different rows.
    """
    raw = rows.flatten(1).view(torch.uint8)
    column_bytes = raw.shape[1] // rows.shape[1]
    for begin in range(start * column_bytes, end * column_bytes, _CHUNK_BYTES):
        for row in raw:
            yield row[begin : min(begin + _CHUNK_BYTES, end * column_bytes) : _PAGE_BYTES].bitwise_or_(0)
