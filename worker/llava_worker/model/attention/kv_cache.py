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

    @classmethod
    def for_model(
        cls, text: TextConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, is_int8: bool = False
    ) -> KVCacheSpec:
        return cls(
            num_blocks=num_blocks,
            block_size=block_size,
            num_layers=text.num_hidden_layers,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            dtype=dtype,
            is_int8=is_int8,
        )

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
        shape = (spec.num_layers, 2, spec.num_tokens, spec.num_kv_heads, spec.head_dim)
        self._rows = zeros(shape, torch.int8 if spec.is_int8 else spec.dtype, device)
        self._scales = zeros(shape[:-1], KV_SCALE_DTYPE, device) if spec.is_int8 else None
        self._num_faulted = 0  # slots that are faulted in once ``_unfaulted`` is exhausted
        self._unfaulted: Iterator[Tensor] = iter(())

    @property
    def is_int8(self) -> bool:
        return self._scales is not None

    def prefault_more(self, num_slots: int) -> bool:
        """Fault in another part of the first ``num_slots`` slots of a CPU cache. Contents do not change.

        The first write to a page that has not been faulted in has to wait for the operating system. A call
        takes a few milliseconds. Returns False once all of these slots are faulted in.
        """
        num_slots = min(num_slots, self.spec.num_tokens)
        if self._rows.device.type == "cpu" and num_slots > self._num_faulted:
            added = [
                prefault_columns(stored.flatten(0, 1), self._num_faulted, num_slots)
                for stored in self._tensors()
            ]
            self._unfaulted = chain(self._unfaulted, *added)
            self._num_faulted = num_slots
        return bool(list(islice(self._unfaulted, _CHUNKS_AT_ONCE)))

    def prefault(self, num_slots: int) -> None:
        """Fault in the first ``num_slots`` slots of a CPU cache without changing its contents."""
        while self.prefault_more(num_slots):
            pass

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """The contiguous tensors of the cache.

        Keys and values, [layers, 2, slots, kv_heads, head_dim]. If the cache is int8, their scales, [layers,
        2, slots, kv_heads].
        """
        return self._rows, self._scales

    def layer(self, layer: int) -> LayerCache:
        """Return views of one layer's keys and values, for kernels that read the cache in place."""
        keys, values = self._rows[layer]
        if self._scales is None:
            return LayerCache(keys, values, self.block_size)
        return LayerCache(keys, values, self.block_size, *self._scales[layer])

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values, both [tokens, kv_heads, head_dim], to ``slots``, int64 [tokens]."""
        rows = self._rows[layer]  # [2, slots, kv_heads, head_dim]
        if self._scales is None:
            rows[0].index_copy_(0, slots, k)
            rows[1].index_copy_(0, slots, v)
            return
        codes, scales = quantize_kv_rows(torch.stack([k, v]))
        rows.index_copy_(1, slots, codes)
        self._scales[layer].index_copy_(1, slots, scales)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values, both [*slots.shape, kv_heads, head_dim], in ``slots`` (int64)."""
        flat = slots.flatten()  # index_select copies whole rows and is several times faster than indexing
        rows = self._rows[layer].index_select(1, flat)
        if self._scales is not None:
            rows = dequantize_kv_rows(rows, self._scales[layer].index_select(1, flat), self.dtype)
        k, v = rows.view(2, *slots.shape, *rows.shape[-2:])
        return k, v

    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the slots ``sources`` to the slots ``targets``, both int64 [n], in all layers.

        All sources are read before any target is written, so sources and targets may overlap.
        """
        for stored in self._tensors():
            stored.index_copy_(2, targets, stored.index_select(2, sources))

    def _tensors(self) -> list[Tensor]:  # each [layers, 2, slots, ...]
        return [self._rows] if self._scales is None else [self._rows, self._scales]
