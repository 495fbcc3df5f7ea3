"""The backend for kernels that use block tables to read the paged KV cache in place.

A kernel receives rows of queries and their block tables. Decodes and prompt chunks differ only in the number
of queries. Decodes nevertheless get a separate call, because a kernel can use smaller tiles if all rows have
a single token, or a kernel of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llava_worker.model.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionPlan,
    DecodeMetadata,
)
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.device_copy import copy_to_device
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.layers.rotary import Rotation

__all__ = ["DecodeKernel", "KernelUnavailable", "PagedBackend", "PagedKernel", "QueryRows"]


class KernelUnavailable(Exception):
    """The kernel cannot be used on this machine. The message says why."""


@dataclass(frozen=True, slots=True)
class QueryRows:
    """The rows in one kernel call. Each token attends to itself and the previous tokens of its sequence."""

    starts: Tensor  # int32 [rows + 1], index of the first token of each row, followed by the number of tokens
    contexts: Tensor  # int32 [rows], length of each sequence, including its new tokens
    context_starts: Tensor  # int32 [rows + 1], 0 followed by the cumulative sums of ``contexts``
    tables: Tensor  # int32 [rows, blocks]
    max_query: int  # number of tokens in the longest row
    max_context: int  # upper bound on ``contexts``


class PagedKernel(ABC):
    """An attention kernel for rows with any number of new tokens."""

    name: str  # used in logs
    block_size: int  # tokens per block that the kernel requires
    splits_decodes = False  # whether decodes of a few long contexts use all multiprocessors of a GPU

    @abstractmethod
    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        """Compute attention like `AttentionPlan.attend`, but without writing to the cache.

        The cache already contains the new keys and values. q is [tokens, heads, head_dim].
        """


class DecodeKernel(ABC):
    """A kernel for rows with one new token each, which can also apply RoPE and write to the cache."""

    name: str  # used in logs

    @abstractmethod
    def rope_and_attend(
        self,
        qkv: Tensor,
        rotation: Rotation,
        cache: LayerCache,
        slots: Tensor,
        rows: QueryRows,
        window: int | None,
    ) -> Tensor:
        """Compute attention like `AttentionPlan.rope_and_attend`. The new tokens are written to ``slots``.

        Each row must be a different sequence, because rows may be read before others are written.
        """

    @abstractmethod
    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        """Compute attention like `PagedKernel.attend`. Several rows can be tokens of one sequence."""


class PagedBackend(AttentionBackend):
    """A backend that uses a `PagedKernel`, and for decodes a `DecodeKernel` if there is one."""

    def __init__(self, kernel: PagedKernel, decode_kernel: DecodeKernel | None = None) -> None:
        self.block_size = kernel.block_size
        self.name = kernel.name
        if decode_kernel is not None:
            self.name += f" with {decode_kernel.name} decoding"
        self._kernel = kernel
        self._decode_kernel = decode_kernel

    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        ends = sorted({0, metadata.num_decodes, len(metadata.query_lens)})
        parts = [_query_rows(metadata, first, last) for first, last in zip(ends, ends[1:], strict=False)]
        return _PagedPlan(self._kernel, self._decode_kernel, cache, metadata.slot_mapping, parts)

    def decode_plan(
        self, metadata: DecodeMetadata, cache: KVCache, *, is_mixed: bool = False
    ) -> AttentionPlan | None:
        contexts = metadata.context_lens
        num_rows = len(contexts)
        rows = QueryRows(
            starts=torch.arange(num_rows + 1, dtype=torch.int32, device=contexts.device),
            contexts=contexts,
            context_starts=F.pad(contexts.cumsum(0, dtype=torch.int32), (1, 0)),
            tables=metadata.block_tables,
            max_query=1,
            max_context=metadata.block_tables.shape[1] * cache.block_size,
        )
        parts = [(slice(0, num_rows), rows)]
        if is_mixed:
            return _PagedPlan(self._decode_kernel or self._kernel, None, cache, metadata.slot_mapping, parts)
        return _PagedPlan(self._kernel, self._decode_kernel, cache, metadata.slot_mapping, parts)


class _PagedPlan(AttentionPlan):
    def __init__(
        self,
        kernel: PagedKernel | DecodeKernel,
        decode_kernel: DecodeKernel | None,
        cache: KVCache,
        slot_mapping: Tensor,
        parts: list[tuple[slice, QueryRows]],
    ) -> None:
        """Create a plan. Each of the ``parts`` is a span of the packed tokens and the rows in this span."""
        self._kernel = kernel
        self._cache = cache
        self._slot_mapping = slot_mapping
        self._parts = parts
        self._decode_kernel = decode_kernel if parts[0][1].max_query == 1 else None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        self._cache.write(layer, self._slot_mapping, k, v)
        stored = self._cache.layer(layer)
        return _concatenate(
            [self._kernel.attend(q[span], stored, rows, window) for span, rows in self._parts]
        )

    def rope_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        del kv_heads  # known from the shape of the cache
        stored = self._cache.layer(layer)
        if self._decode_kernel is None:
            q = rotation.rope_and_cache(qkv, stored, self._slot_mapping)
            return _concatenate(
                [self._kernel.attend(q[span], stored, rows, window) for span, rows in self._parts]
            )
        (decodes, decode_rows), *others = self._parts
        rotated = []
        for span, _ in others:  # writes all keys and values before any are read
            rotation_of_span = rotation.of_tokens(span)
            rotated.append(rotation_of_span.rope_and_cache(qkv[span], stored, self._slot_mapping[span]))
        outs = [
            self._decode_kernel.rope_and_attend(
                qkv[decodes],
                rotation.of_tokens(decodes),
                stored,
                self._slot_mapping[decodes],
                decode_rows,
                window,
            )
        ]
        outs += [
            self._kernel.attend(q, stored, rows, window) for q, (_, rows) in zip(rotated, others, strict=True)
        ]
        return _concatenate(outs)


def _concatenate(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _query_rows(metadata: AttentionMetadata, first: int, last: int) -> tuple[slice, QueryRows]:
    """Return the span of tokens that belong to rows [first, last), and these rows as `QueryRows`."""
    lens, contexts = metadata.query_lens[first:last], metadata.context_lens[first:last]
    num, device = len(lens), metadata.block_tables.device
    # Copy one concatenated array to the device instead of three small ones.
    packed = np.concatenate([[0], np.cumsum(lens), contexts, [0], np.cumsum(contexts)]).astype(np.int32)
    starts, context_lens, context_starts = torch.split(
        copy_to_device(packed, device), [num + 1, num, num + 1]
    )
    begin = sum(metadata.query_lens[:first])
    rows = QueryRows(
        starts=starts,
        contexts=context_lens,
        context_starts=context_starts,
        tables=metadata.block_tables[first:last].int(),
        max_query=max(lens),
        max_context=max(contexts),
    )
    return slice(begin, begin + sum(lens)), rows
