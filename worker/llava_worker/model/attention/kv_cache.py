"""The paged KV cache, which stores the keys and values of all tokens that running sequences can attend to.

In this module, a row is the key or the value of one token in one head: head_dim elements, stored in the
compute dtype or in int8. An int8 cache needs about half the memory of a 16-bit cache, at the cost of a small
loss of accuracy (see docs/how-it-works/memory.md). Its format is described in `kv_quantization`. The stored
form of a row depends only on the row, not on the batch or the prompt chunk that contained it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.kernels.kv_quantization import (
    KV_SCALE_DTYPE,
    dequantize_kv_rows,
    quantize_kv_rows,
)
from llava_worker.model.lazy_memory import prefault_columns, zeros

__all__ = ["KVCache", "KVCacheSpec"]

_CHUNKS_AT_ONCE = 4  # memory chunks per prefault_more call; a call takes about 2 ms, or 25 ms on slow hosts


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """The size and format of a KV cache."""

    num_blocks: int
    block_size: int  # tokens per block
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype  # dtype in which keys and values are written and read
    is_int8: bool = False  # whether they are stored as int8 instead of ``dtype``
    # Whether the rows of a head are adjacent within a block, which CPUs read faster. Otherwise, those of a
    # token are adjacent.
    is_head_major: bool = False

    @classmethod
    def for_model(
        cls,
        text: TextConfig,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        is_int8: bool = False,
        is_head_major: bool = False,
    ) -> KVCacheSpec:
        return cls(
            num_blocks=num_blocks,
            block_size=block_size,
            num_layers=text.num_hidden_layers,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            dtype=dtype,
            is_int8=is_int8,
            is_head_major=is_head_major,
        )

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The dimensions of the keys or values of one layer, without head_dim.

        [slots, kv_heads] or, if the cache is head-major, [blocks * kv_heads * block_size].
        """
        if self.is_head_major:
            return (self.num_tokens * self.num_kv_heads,)
        return self.num_tokens, self.num_kv_heads

    @property
    def num_tokens(self) -> int:
        """The capacity in tokens. Each slot holds one token."""
        return self.num_blocks * self.block_size

    @property
    def bytes_per_block(self) -> int:
        row_bytes = (
            self.head_dim + KV_SCALE_DTYPE.itemsize if self.is_int8 else self.head_dim * self.dtype.itemsize
        )
        return self.num_layers * 2 * self.block_size * self.num_kv_heads * row_bytes

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    def within(self, max_bytes: int) -> KVCacheSpec:
        """Return a copy, with fewer blocks if necessary, that fits in ``max_bytes``."""
        return replace(self, num_blocks=min(self.num_blocks, max(0, max_bytes) // self.bytes_per_block))


class KVCache:
    """A KV cache with one slot per token. Block b consists of slots [b * block_size, (b + 1) * block_size).

    The block manager assigns blocks to sequences; the cache does not know which sequence uses a block. The
    content of a slot is undefined until the slot is written. If a row that contains a NaN or an infinity is
    written to an int8 cache, all elements of the row are NaN when it is read.
    """

    def __init__(self, spec: KVCacheSpec, device: torch.device) -> None:
        """Allocate the cache. On a CPU, the operating system allocates memory lazily, on the first write."""
        self.spec = spec
        self.dtype = spec.dtype
        self.num_blocks = spec.num_blocks
        self.block_size = spec.block_size
        shape = (spec.num_layers, 2, *spec.rows_shape)
        dtype = torch.int8 if spec.is_int8 else spec.dtype
        self._rows = zeros((*shape, spec.head_dim), dtype, device, is_growing=True)
        self._scales = zeros(shape, KV_SCALE_DTYPE, device, is_growing=True) if spec.is_int8 else None
        self._num_faulted = 0  # blocks that are faulted in once ``_unfaulted`` is exhausted
        self._unfaulted: Iterator[Tensor] = iter(())

    @property
    def is_int8(self) -> bool:
        return self._scales is not None

    def prefault_more(self, num_slots: int) -> bool:
        """Fault in another part of the blocks of the first ``num_slots`` slots of a CPU cache.

        Contents do not change. The first write to a page that has not been faulted in has to wait for the
        operating system. A call takes a few milliseconds. Returns False once all of them are faulted in.
        """
        num_blocks = min(-(-num_slots // self.block_size), self.num_blocks)
        if self._rows.device.type == "cpu" and num_blocks > self._num_faulted:
            added = [
                prefault_columns(
                    stored.view(-1, self.num_blocks, stored[0, 0].numel() // self.num_blocks),
                    self._num_faulted,
                    num_blocks,
                )
                for stored in self._tensors()
            ]
            self._unfaulted = chain(self._unfaulted, *added)
            self._num_faulted = num_blocks
        return bool(list(islice(self._unfaulted, _CHUNKS_AT_ONCE)))

    def prefault(self, num_slots: int) -> None:
        """Fault in the first ``num_slots`` slots of a CPU cache without changing its contents."""
        while self.prefault_more(num_slots):
            pass

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """The contiguous tensors of the cache.

        Keys and values, [layers, 2, *rows_shape, head_dim]. If the cache is int8, their scales, [layers, 2,
        *rows_shape].
        """
        return self._rows, self._scales

    def layer(self, layer: int) -> LayerCache:
        """Return views of one layer's keys and values, for kernels that read the cache in place."""
        tensors = [*self._rows[layer], *(() if self._scales is None else self._scales[layer])]
        if self.spec.is_head_major:
            shape = (self.num_blocks, self.spec.num_kv_heads, self.block_size)
            tensors = [each.view(*shape, *each.shape[1:]) for each in tensors]
        return LayerCache(tensors[0], tensors[1], self.block_size, *tensors[2:])

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values, both [tokens, kv_heads, head_dim], to ``slots``, int64 [tokens]."""
        indices = self._indices(slots)
        if self._scales is None:
            for stored, rows in zip(self._rows[layer], (k, v), strict=True):
                stored.index_copy_(0, indices, rows.reshape(len(indices), *stored.shape[1:]))
            return
        codes, scales = quantize_kv_rows(torch.stack([k, v]))
        for stored, rows in ((self._rows, codes), (self._scales, scales)):
            stored[layer].index_copy_(1, indices, rows.reshape(2, len(indices), *stored.shape[3:]))

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values, both [*slots.shape, kv_heads, head_dim], in ``slots`` (int64)."""
        # index_select copies whole rows and is several times faster than indexing.
        indices = self._indices(slots.flatten())
        rows = self._rows[layer].index_select(1, indices)
        if self._scales is not None:
            rows = dequantize_kv_rows(rows, self._scales[layer].index_select(1, indices), self.dtype)
        k, v = rows.view(2, *slots.shape, self.spec.num_kv_heads, self.spec.head_dim)
        return k, v

    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the slots ``sources`` to the slots ``targets``, both int64 [n], in all layers.

        All sources are read before any target is written, so sources and targets may overlap.
        """
        source_indices, target_indices = self._indices(sources), self._indices(targets)
        for stored in self._tensors():
            stored.index_copy_(2, target_indices, stored.index_select(2, source_indices))

    def _indices(self, slots: Tensor) -> Tensor:
        """Return the indices of the rows in ``slots`` [n]: [n] or, in a head-major cache, [n * kv_heads]."""
        if not self.spec.is_head_major:
            return slots
        heads = torch.arange(self.spec.num_kv_heads, device=slots.device)
        blocks, offsets = slots // self.block_size, slots % self.block_size
        first = blocks * (self.spec.num_kv_heads * self.block_size) + offsets
        return (first[:, None] + heads * self.block_size).flatten()

    def _tensors(self) -> list[Tensor]:  # each [layers, 2, *rows_shape, ...]
        return [self._rows] if self._scales is None else [self._rows, self._scales]
