"""CPU attention, computed by C++ kernels that read the KV cache in place.

For prompts that the C++ kernels do not support, such as fp32 prompts, this backend falls back to `sdpa`.

A short row (the last token of a sequence plus draft tokens) is computed as multiple single-token rows that
share a block table. This is possible because all keys and values are written before any are read. As a
result, draft tokens are verified using exactly the same arithmetic as in normal decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor

from llava_worker.model.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionPlan,
    PromptRows,
    StepRows,
)
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.layers.rotary import Rotation

__all__ = ["CpuBackend"]

_LANES = 16  # head_dim must be a multiple of this
_MAX_SHORT_ROW = 16  # tokens; for longer rows, it is faster to read keys and values once for all tokens


class CpuBackend(AttentionBackend):
    """Attention for a head-major cache."""

    is_head_major = True

    def __init__(self, kernels: NativeKernels) -> None:
        self._kernels = kernels
        self._reference = SdpaBackend()

    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        if not cache.spec.is_head_major:
            raise ValueError("The C++ kernels require a head-major KV cache.")
        lens = metadata.query_lens
        num_short = sum(1 for _ in takewhile(lambda length: length <= _MAX_SHORT_ROW, lens))
        if cache.spec.head_dim % _LANES:
            return self._reference.plan(metadata, cache)
        if self._kernels.uses_prefill_attention(cache.dtype) or num_short == len(lens):
            return _CpuPlan(metadata, num_short, cache, self._kernels)
        if not num_short:
            return self._reference.plan(metadata, cache)
        short, prompts = _split(metadata, num_short)
        return _SplitPlan(
            sum(short.query_lens),
            _CpuPlan(short, num_short, cache, self._kernels),
            self._reference.plan(prompts, cache),
        )


class _CpuPlan(AttentionPlan):
    def __init__(
        self, metadata: AttentionMetadata, num_short: int, cache: KVCache, kernels: NativeKernels
    ) -> None:
        """Create a plan in which the first ``num_short`` rows are computed token by token."""
        self._slot_mapping = metadata.slot_mapping
        self._cache = cache
        self._kernels = kernels
        short = metadata.query_lens[:num_short]
        self._num_decodes = sum(short)
        self._tables = metadata.block_tables[:num_short].repeat_interleave(
            torch.tensor(short, dtype=torch.int64), dim=0
        )
        contexts = zip(short, metadata.context_lens, strict=False)
        self._contexts = torch.tensor(
            [n for length, end in contexts for n in range(end - length + 1, end + 1)], dtype=torch.int64
        )
        self._prompts = tuple(_prompts(metadata, num_short))

    @property
    def step_rows(self) -> StepRows:
        return StepRows(self._cache, self._slot_mapping, self._tables, self._contexts, self._prompts)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        self._cache.write(layer, self._slot_mapping, k, v)
        return self._attend(q, self._cache.layer(layer), window)

    def rope_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        del kv_heads  # that of the cache
        stored = self._cache.layer(layer)
        q = self._kernels.rope_and_cache(qkv, rotation.cos, rotation.sin, stored, self._slot_mapping)
        return self._attend(q, stored, window)

    def _attend(self, q: Tensor, stored: LayerCache, window: int | None) -> Tensor:
        """Compute attention to the keys and values in ``stored``, which include those of the new tokens."""
        out = q.new_empty(q.shape)
        if self._num_decodes:
            decodes = slice(0, self._num_decodes)
            self._kernels.decode_attention(
                q[decodes], stored, self._tables, self._contexts, window or 0, out=out[decodes]
            )
        for prompt in self._prompts:
            rows = prompt.tokens
            self._kernels.prefill_attention(
                q[rows], stored, prompt.table, prompt.context, window or 0, out=out[rows]
            )
        return out


class _SplitPlan(AttentionPlan):
    """A plan that combines two plans: one for the first ``num_tokens`` tokens, and one for the rest."""

    def __init__(self, num_tokens: int, first: AttentionPlan, others: AttentionPlan) -> None:
        self._num_tokens = num_tokens
        self._first = first
        self._others = others

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        num = self._num_tokens
        first = self._first.attend(layer, q[:num], k[:num], v[:num], window=window)
        return torch.cat([first, self._others.attend(layer, q[num:], k[num:], v[num:], window=window)])


def _prompts(metadata: AttentionMetadata, num_short: int) -> Iterator[PromptRows]:
    """Yield the rows after the short rows."""
    start = sum(metadata.query_lens[:num_short])
    for row in range(num_short, len(metadata.query_lens)):
        end = start + metadata.query_lens[row]
        yield PromptRows(
            slice(start, end), metadata.block_tables[row].contiguous(), metadata.context_lens[row]
        )
        start = end


def _split(metadata: AttentionMetadata, num: int) -> tuple[AttentionMetadata, AttentionMetadata]:
    """Return separate metadata for the first ``num`` rows and for the remaining rows."""
    num_tokens = sum(metadata.query_lens[:num])
    first = replace(
        metadata,
        query_lens=metadata.query_lens[:num],
        context_lens=metadata.context_lens[:num],
        block_tables=metadata.block_tables[:num],
        slot_mapping=metadata.slot_mapping[:num_tokens],
    )
    others = replace(
        metadata,
        query_lens=metadata.query_lens[num:],
        context_lens=metadata.context_lens[num:],
        num_decodes=0,
        block_tables=metadata.block_tables[num:],
        slot_mapping=metadata.slot_mapping[num_tokens:],
    )
    return first, others
