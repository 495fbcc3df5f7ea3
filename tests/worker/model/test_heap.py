"""Memory that native code has freed is returned to the operating system."""

from __future__ import annotations

import ctypes

import psutil
from llava_worker.model.heap import trim_heap

_BLOCK_BYTES = 64 << 10  # below the size from which glibc maps each block separately
_NUM_BLOCKS = 1024


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def test_freed_blocks_below_a_used_block_are_returned() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(libc.malloc(_BLOCK_BYTES)) for _ in range(_NUM_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK_BYTES)
    for block in blocks[:-1]:
        libc.free(block)
    before = resident_bytes()
    trim_heap()
    assert before - resident_bytes() > _NUM_BLOCKS * _BLOCK_BYTES / 2
    libc.free(blocks[-1])
