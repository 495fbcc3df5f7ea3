"""Large CPU allocations that are faulted in incrementally.

Linux allocates each page of memory when it is first written. On a virtual machine, the host also has to
allocate the page, which can limit the speed to 0.3 GB/s (docs/LOG.md). The worker therefore faults in pages
while it is idle, before requests need the memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

__all__ = ["lazy_zeros", "prefault_columns"]

_CHUNK_BYTES = 2 << 20  # one huge page
_PAGE_BYTES = mmap.PAGESIZE


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a CPU tensor of zeros with no pages faulted in.

    Raises OSError or OverflowError if the tensor is too large.
    """
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the operating system does not support huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def prefault_columns(rows: Tensor, start: int) -> Iterator[Tensor]:
    """Fault in ``rows`` [rows, columns, ...] from column ``start`` onward without changing the contents.

    Each step of the iterator faults in one chunk of one row. Consecutive steps process different rows.
    """
    raw = rows.flatten(1).view(torch.uint8)
    first = start * (raw.shape[1] // rows.shape[1])
    for begin in range(first, raw.shape[1], _CHUNK_BYTES):
        for row in raw:
            yield row[begin : begin + _CHUNK_BYTES : _PAGE_BYTES].bitwise_or_(0)
