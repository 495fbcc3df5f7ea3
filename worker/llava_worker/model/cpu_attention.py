"""Attention for CPUs: short rows read the cache where it lies, in C++; the others as in `sdpa`.

A row of a few tokens, an answer's last with the guesses after it, is taken as so many rows of one token over
the same blocks, which are written before any is read. So a guess is checked by the arithmetic of decoding.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor

from llava_worker.model.attention import AttentionBackend, AttentionPlan, PackedRows
from llava_worker.model.cpu.native import NativeKernels, StoredKeys
from llava_worker.model.int8_cache import Int8KVCache
from llava_worker.model.kv_cache import ExactKVCache, KVCache
from llava_worker.model.sdpa import SdpaBackend

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
        if not short or stored is None or stored.keys.shape[-1] % _LANES:
            return self._reference.plan(rows, cache)
        has_others = len(short) < len(rows.query_lens)
        others = self._reference.plan(_after(rows, short), cache) if has_others else None
        return _CpuPlan(rows, short, cache, self._kernels, others)


class _CpuPlan(AttentionPlan):
    def __init__(
        self,
        rows: PackedRows,
        short: list[int],
        cache: KVCache,
        kernels: NativeKernels,
        others: AttentionPlan | None,
    ) -> None:
        """``short`` are the lengths of the leading rows that the kernel takes; ``others`` is for the rest."""
        self._cache = cache
        self._kernels = kernels
        self._others = others
        self._num_tokens = sum(short)
        self._slots = rows.slots[: self._num_tokens]
        self._tables = rows.block_tables[: len(short)].repeat_interleave(torch.tensor(short), dim=0)
        contexts = zip(short, rows.context_lens, strict=False)
        self._contexts = torch.tensor(
            [n for length, end in contexts for n in range(end - length + 1, end + 1)]
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        num = self._num_tokens
        self._cache.write(layer, self._slots, k[:num], v[:num])
        stored = _stored(self._cache, layer)
        assert stored is not None
        out = self._kernels.decode_attention(q[:num], stored, self._tables, self._contexts, window or 0)
        if self._others is None:
            return out
        return torch.cat([out, self._others.attend(layer, q[num:], k[num:], v[num:], window=window)])


def _after(rows: PackedRows, short: list[int]) -> PackedRows:
    num = len(short)
    return replace(
        rows,
        query_lens=rows.query_lens[num:],
        context_lens=rows.context_lens[num:],
        num_decodes=0,
        block_tables=rows.block_tables[num:],
        slots=rows.slots[sum(short) :],
    )


def _stored(cache: KVCache, layer: int) -> StoredKeys | None:
    """What the kernel reads; None of a cache that it does not know."""
    if isinstance(cache, ExactKVCache):
        return StoredKeys(cache.keys(layer), cache.values(layer), cache.block_size)
    if isinstance(cache, Int8KVCache):
        (keys, values), scales = cache.codes(layer), cache.scales(layer)
        return StoredKeys(keys, values, cache.block_size, scales[0], scales[1])
    return None
