"""A CPU's large memory, taken bit by bit: the first touch of a page is when the system has to find it.

On a virtual machine whose host has to find it too that may go at 0.3 GB/s (docs/LOG.md).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

__all__ = ["touch", "untouched_zeros"]

_PORTION = 2 << 20  # one of Linux's large pages
_PAGE = mmap.PAGESIZE


def untouched_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """On the CPU. Raises OSError or OverflowError if there is no room for so much at all."""
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages has the others
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def touch(rows: Tensor, start: int) -> Iterator[Tensor]:
    """Touches rows [rows, columns, ...] from column ``start`` on, a portion for each that is taken from here,
    all rows side by side. What they hold stays as it is."""
    raw = rows.flatten(1).view(torch.uint8)
    first = start * (raw.shape[1] // rows.shape[1])
    for begin in range(first, raw.shape[1], _PORTION):
        for row in raw:
            yield row[begin : begin + _PORTION : _PAGE].bitwise_or_(0)
