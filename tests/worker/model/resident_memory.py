"""How much of a tensor's memory is resident."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from torch import Tensor

__all__ = ["resident_bytes"]

_PRESENT = np.uint64(1 << 63)


def resident_bytes(tensor: Tensor) -> int:
    """Return how many bytes of a contiguous tensor on a CPU are in resident pages."""
    first, last = tensor.data_ptr() // mmap.PAGESIZE, (tensor.data_ptr() + tensor.nbytes - 1) // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:  # 8 bytes per page
        pages.seek(8 * first)
        entries = np.frombuffer(pages.read(8 * (last - first + 1)), np.uint64)
    return min(tensor.nbytes, int(np.count_nonzero(entries & _PRESENT)) * mmap.PAGESIZE)
