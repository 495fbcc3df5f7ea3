"""Attention by kernels that read the paged cache where it lies, through each row's table of blocks.

A kernel gets rows of queries and their tables; what the two kinds of rows have in common, one token or many,
it sees as lengths. Rows of one token go to it in a call of their own: kernels split long contexts for these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llava_worker.model.attention.base import AttentionBackend, AttentionPlan, DecodeRows, PackedRows
from llava_worker.model.attention.kv_cache import ExactKVCache, KVCache
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.device_copy import copy_to_device
from llava_worker.model.layers.rotary import Rotation

__all__ = ["PagedBackend", "PagedKernel", "Queries"]


@dataclass(frozen=True, slots=True)
class Queries:
    """Rows of one kernel call. A token sees all of its row that stands before it, and itself."""

    starts: Tensor  # int32 [rows + 1], each row's first token among the packed ones, and their end
    contexts: Tensor  # int32 [rows], tokens that the row's last one sees, itself included
    context_starts: Tensor  # int32 [rows + 1], the same added up
    tables: Tensor  # int32 [rows, blocks]
    max_query: int  # tokens of the longest row
    max_context: int  # or more


class PagedKernel(ABC):
    """A kernel over a cache in 16 or 32 bit."""

    name: str  # for logs
    block_size: int  # tokens of a block, as the kernel wants them

    @abstractmethod
    def attend(self, q: Tensor, keys: Tensor, values: Tensor, rows: Queries, window: int | None) -> Tensor:
        """Causal attention as `AttentionPlan.attend`; what the rows see of the cache is there already.

        q [tokens, heads, head_dim]; keys and values [blocks, block_size, kv_heads, head_dim].
        """


class PagedBackend(AttentionBackend):
    """A cache that the kernels do not read, one in 8 bit, is served by the reference."""

    def __init__(self, kernel: PagedKernel) -> None:
        self.block_size = kernel.block_size
        self.name = kernel.name
        self._kernel = kernel
        self._reference = SdpaBackend()

    def plan(self, rows: PackedRows, cache: KVCache) -> AttentionPlan:
        if not isinstance(cache, ExactKVCache):
            return self._reference.plan(rows, cache)
        num_rows = len(rows.query_lens)
        ends = sorted({0, rows.num_decodes, num_rows})
        parts = [_queries(rows, first, last) for first, last in zip(ends, ends[1:], strict=False)]
        return _PagedPlan(self._kernel, cache, rows.slots, parts)

    def decode_plan(self, rows: DecodeRows, cache: KVCache) -> AttentionPlan | None:
        if not isinstance(cache, ExactKVCache):
            return None
        num_rows = len(rows.slots)
        queries = Queries(
            starts=torch.arange(num_rows + 1, dtype=torch.int32, device=rows.slots.device),
            contexts=rows.context_lens,
            context_starts=F.pad(rows.context_lens.cumsum(0, dtype=torch.int32), (1, 0)),
            tables=rows.block_tables,
            max_query=1,
            max_context=rows.block_tables.shape[1] * cache.block_size,
        )
        return _PagedPlan(self._kernel, cache, rows.slots, [(slice(0, num_rows), queries)])


class _PagedPlan(AttentionPlan):
    def __init__(
        self, kernel: PagedKernel, cache: ExactKVCache, slots: Tensor, parts: list[tuple[slice, Queries]]
    ) -> None:
        """``parts`` are spans of the packed tokens, in order, with what stands there."""
        self._kernel = kernel
        self._cache = cache
        self._slots = slots
        self._parts = parts

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        self._cache.write(layer, self._slots, k, v)
        return self._attend(layer, q, window)

    def turn_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        del kv_heads  # the cache's
        keys, values = self._cache.keys(layer), self._cache.values(layer)
        return self._attend(layer, rotation.turn_and_keep(qkv, keys, values, self._slots), window)

    def _attend(self, layer: int, q: Tensor, window: int | None) -> Tensor:
        keys, values = self._cache.blocks(layer)
        outs = [self._kernel.attend(q[span], keys, values, rows, window) for span, rows in self._parts]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def _queries(rows: PackedRows, first: int, last: int) -> tuple[slice, Queries]:
    """Rows [first, last) and where their tokens stand."""
    lens, contexts = rows.query_lens[first:last], rows.context_lens[first:last]
    device = rows.block_tables.device
    # One small copy to the device instead of three.
    told = np.concatenate([[0], np.cumsum(lens), contexts, [0], np.cumsum(contexts)]).astype(np.int32)
    num = len(lens)
    starts, seen, sums = torch.split(copy_to_device(told, device), [num + 1, num, num + 1])
    begin = sum(rows.query_lens[:first])
    queries = Queries(
        starts=starts,
        contexts=seen,
        context_starts=sums,
        tables=rows.block_tables[first:last].int(),
        max_query=max(lens),
        max_context=max(contexts),
    )
    return slice(begin, begin + sum(lens)), queries
