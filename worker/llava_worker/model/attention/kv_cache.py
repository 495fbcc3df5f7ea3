"""Keys and values of every token that any running sequence may still look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from llava_worker.model.attention.page_prefault import touch, untouched_zeros

__all__ = ["ExactKVCache", "KVCache"]

_AT_ONCE = 4  # portions of memory: 2 ms where it is fast, 25 where a host has to find it


class KVCache(ABC):
    """Slots for one token each; block ``b`` is slots [b * block_size, (b + 1) * block_size).

    Who owns which block is not known here, and how a slot keeps its content is a subclass's matter: whoever
    reads through `gather` need not care. A slot's content is undefined until written.
    """

    is_exact: bool  # what is gathered is what was written, to the bit

    def __init__(self, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        """``dtype`` is that of what is written and gathered."""
        self.dtype = dtype
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._stored: list[Tensor] = []  # [layers, 2, slots, ...] each
        self._unclaimed: Iterator[Tensor] = iter(())

    def claim(self, num_slots: int) -> None:
        """Take the memory of the first slots, before any is written. On a CPU it is only promised when the
        cache is made; who writes where none was taken waits for it."""
        for stored in self._stored:
            if stored.device.type == "cpu":
                stored[:, :, :num_slots].zero_()
                self._unclaimed = chain(self._unclaimed, touch(stored.flatten(0, 1), num_slots))

    def claim_more(self) -> bool:
        """Take some more, for a few milliseconds, whatever has been written; False if all has been taken."""
        return bool(list(islice(self._unclaimed, _AT_ONCE)))

    def _keep(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros, [layers, 2, slots, ...]. A GPU's memory is taken at once: what is not there fails here."""
        is_cpu = device.type == "cpu"
        stored = untouched_zeros(shape, dtype) if is_cpu else torch.zeros(shape, dtype=dtype, device=device)
        self._stored.append(stored)
        return stored

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
        super().__init__(num_blocks, block_size, dtype)
        shape = (num_layers, 2, num_blocks * block_size, num_heads, head_dim)
        self._slots = self._keep(shape, dtype, device)

    @staticmethod
    def bytes_per_block(
        block_size: int, *, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        return num_layers * 2 * block_size * num_heads * head_dim * dtype.itemsize

    def keys(self, layer: int) -> Tensor:  # [slots, heads, head_dim]
        return self._slots[layer, 0]

    def values(self, layer: int) -> Tensor:  # [slots, heads, head_dim]
        return self._slots[layer, 1]

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, [blocks, block_size, heads, head_dim] each."""
        shape = (self.num_blocks, self.block_size, *self._slots.shape[-2:])
        return self.keys(layer).view(shape), self.values(layer).view(shape)

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
