"""Attention for CPUs, in C++ that reads the cache where it lies; long rows in fp32 as in `sdpa`.

A row of a few tokens, an answer's last with the guesses after it, is taken as so many rows of one token over
the same blocks, which are written before any is read. So a guess is checked by the arithmetic of decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor

from llava_worker.model.attention.base import AttentionBackend, AttentionPlan, PackedRows
from llava_worker.model.attention.int8_kv_cache import Int8KVCache
from llava_worker.model.attention.kv_cache import ExactKVCache, KVCache
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.cpu.native import NativeKernels, StoredKeys

__all__ = ["CpuBackend"]

_LANES = 16  # a head is so many numbers, or a multiple
_SHORT = 16  # tokens; a longer row shares what it reads among its tokens


class CpuBackend(AttentionBackend):
    def __init__(self, kernels: NativeKernels) -> None:
        self._kernels = kernels
        self._reference = SdpaBackend()

    def plan(self, rows: PackedRows, cache: KVCache) -> AttentionPlan:
        stored = _stored(cache, 0)
        short = list(takewhile(lambda length: length <= _SHORT, rows.query_lens))
        if stored is None or stored.keys.shape[-1] % _LANES:
            return self._reference.plan(rows, cache)
        if self._kernels.takes_prompts(cache.dtype) or len(short) == len(rows.query_lens):
            return _CpuPlan(rows, len(short), cache, self._kernels)
        if not short:
            return self._reference.plan(rows, cache)
        first, others = _divided(rows, len(short))
        return _Divided(
            sum(short),
            _CpuPlan(first, len(short), cache, self._kernels),
            self._reference.plan(others, cache),
        )


class _CpuPlan(AttentionPlan):
    def __init__(self, rows: PackedRows, num_short: int, cache: KVCache, kernels: NativeKernels) -> None:
        """``num_short`` leading rows are taken token by token."""
        self._rows = rows
        self._cache = cache
        self._kernels = kernels
        short = rows.query_lens[:num_short]
        self._num_decodes = sum(short)
        self._tables = rows.block_tables[:num_short].repeat_interleave(
            torch.tensor(short, dtype=torch.int64), dim=0
        )
        contexts = zip(short, rows.context_lens, strict=False)
        self._contexts = torch.tensor(
            [n for length, end in contexts for n in range(end - length + 1, end + 1)], dtype=torch.int64
        )
        self._prompts = list(_prompts(rows, num_short))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        self._cache.write(layer, self._rows.slots, k, v)
        stored = _stored(self._cache, layer)
        assert stored is not None
        out = q.new_empty(q.shape)
        if self._num_decodes:
            places = (self._tables, self._contexts, window or 0)
            short = slice(0, self._num_decodes)
            self._kernels.decode_attention(q[short], stored, *places, out=out[short])
        for tokens, table, context in self._prompts:
            self._kernels.prompt_attention(q[tokens], stored, table, context, window or 0, out=out[tokens])
        return out


class _Divided(AttentionPlan):
    """Two plans, one for the first ``num_tokens`` and one for those after."""

    def __init__(self, num_tokens: int, first: AttentionPlan, others: AttentionPlan) -> None:
        self._num_tokens = num_tokens
        self._first = first
        self._others = others

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        num = self._num_tokens
        first = self._first.attend(layer, q[:num], k[:num], v[:num], window=window)
        return torch.cat([first, self._others.attend(layer, q[num:], k[num:], v[num:], window=window)])


def _prompts(rows: PackedRows, num_short: int) -> Iterator[tuple[slice, Tensor, int]]:
    """Of each row after the short ones its tokens, its blocks and its context."""
    start = sum(rows.query_lens[:num_short])
    for row in range(num_short, len(rows.query_lens)):
        end = start + rows.query_lens[row]
        yield slice(start, end), rows.block_tables[row], rows.context_lens[row]
        start = end


def _divided(rows: PackedRows, num: int) -> tuple[PackedRows, PackedRows]:
    """The first rows and the others."""
    num_tokens = sum(rows.query_lens[:num])
    first = replace(
        rows,
        query_lens=rows.query_lens[:num],
        context_lens=rows.context_lens[:num],
        block_tables=rows.block_tables[:num],
        slots=rows.slots[:num_tokens],
    )
    others = replace(
        rows,
        query_lens=rows.query_lens[num:],
        context_lens=rows.context_lens[num:],
        num_decodes=0,
        block_tables=rows.block_tables[num:],
        slots=rows.slots[num_tokens:],
    )
    return first, others


def _stored(cache: KVCache, layer: int) -> StoredKeys | None:
    """What the kernel reads; None of a cache that it does not know."""
    if isinstance(cache, ExactKVCache):
        return StoredKeys(cache.keys(layer), cache.values(layer), cache.block_size)
    if isinstance(cache, Int8KVCache):
        (keys, values), scales = cache.codes(layer), cache.scales(layer)
        return StoredKeys(keys, values, cache.block_size, scales[0], scales[1])
    return None
