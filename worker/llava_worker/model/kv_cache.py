"""Keys and values of every token that any running sequence may still look at."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
from abc import ABC, abstractmethod
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

__all__ = ["ExactKVCache", "KVCache", "zeros"]

_CACHE_LINE = 64  # bytes
_LARGE_BYTES = 256 << 20
_PIECE_BYTES = 4 << 20
_POPULATE = 23  # MADV_POPULATE_WRITE of Linux 5.14 and later: pages come, what is in them stays


class KVCache(ABC):
    """Slots for one token each; block ``b`` is slots [b * block_size, (b + 1) * block_size).

    Who owns which block is not known here, and how a slot keeps its content is a subclass's matter: whoever
    reads through `gather` need not care. A slot's content is undefined until written.
    """

    is_exact: bool  # what is gathered is what was written, to the bit

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size

    @abstractmethod
    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values of tokens, [tokens, heads, head_dim] each, into their slots, int64 [tokens]."""

    @abstractmethod
    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots, int64 of any shape: [*slots, heads, head_dim] each, as computed with."""

    @abstractmethod
    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        """Slots ``targets`` become what slots ``sources`` were, in every layer; int64 [rows] each."""


class ExactKVCache(KVCache):
    """Keys and values in the number format they were computed in."""

    is_exact = True

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(num_blocks, block_size)
        self._slots = zeros((num_layers, 2, num_blocks * block_size, num_heads, head_dim), dtype, device)

    @staticmethod
    def bytes_per_block(
        block_size: int, *, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        return num_layers * 2 * block_size * num_heads * head_dim * dtype.itemsize

    def keys(self, layer: int) -> Tensor:  # [slots, heads, head_dim]
        return self._slots[layer, 0]

    def values(self, layer: int) -> Tensor:  # [slots, heads, head_dim]
        return self._slots[layer, 1]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        self.keys(layer).index_copy_(0, slots, k)
        self.values(layer).index_copy_(0, slots, v)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        places = slots.flatten()  # index_select copies whole rows, several times as fast as indexing
        rows = self._slots[layer].index_select(1, places)
        k, v = rows.view(2, *slots.shape, *rows.shape[-2:])
        return k, v

    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        self._slots.index_copy_(2, targets, self._slots.index_select(2, sources))


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.zeros`, but a CPU's memory comes at once and is filled in by the system meanwhile.

    To write 12 GB at the start takes 5 to 20 s; to leave it to who first writes there makes the first answers
    slow. Zeros it must be: a kernel may multiply what it reads beyond a context by nothing, and garbage can
    be NaN.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + _CACHE_LINE, dtype=np.uint8)  # untouched: numpy asks for zeroed pages
    first = -memory.ctypes.data % _CACHE_LINE
    if num_bytes >= _LARGE_BYTES:
        threading.Thread(target=_populate, args=(memory,), name="kv-cache", daemon=True).start()
    return torch.from_numpy(memory[first : first + num_bytes]).view(dtype).view(shape)


def _populate(memory: np.ndarray) -> None:
    """Ask for all pages, piece by piece, while a core is idle; elsewhere they come as they are used."""
    with suppress(OSError, AttributeError):  # AttributeError: no Linux
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = -(-memory.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = memory.ctypes.data + memory.nbytes
    for start in range(begin, end - _PIECE_BYTES, _PIECE_BYTES):
        if madvise(start, _PIECE_BYTES, _POPULATE) != 0:
            return
