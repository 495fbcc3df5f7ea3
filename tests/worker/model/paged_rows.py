"""Batches over a paged cache whose blocks lie anywhere, for tests of attention."""

from __future__ import annotations

import torch
from llava_worker.model.attention.base import AttentionBackend, AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from torch import Tensor

BLOCK, BLOCKS = 4, 40  # tokens of a block, blocks of a cache
LAYER = 1  # of two: what is written to the other must not matter


CPU = torch.device("cpu")


def draw(*shape: int, dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def filled(
    is_int8: bool,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    block_size: int = BLOCK,
    device: torch.device = CPU,
) -> KVCache:
    cache = KVCache(KVCacheSpec(BLOCKS, block_size, 2, kv_heads, head_dim, dtype, is_int8), device)
    shape = (BLOCKS * block_size, kv_heads, head_dim)
    for layer in range(2):
        k, v = (draw(*shape, dtype=dtype, device=device) for _ in range(2))
        cache.write(layer, torch.arange(shape[0], device=device), k, v)
    return cache


def pack(
    rows: list[tuple[int, int]], *, block_size: int = BLOCK, device: torch.device = CPU
) -> AttentionMetadata:
    """Rows of (new tokens, tokens in all), those with one first, in blocks of their own at random places."""
    rows = sorted(rows, key=lambda row: row[0] > 1)
    blocks = torch.randperm(BLOCKS).tolist()
    tables = [[blocks.pop() for _ in range(-(-context // block_size))] for _, context in rows]
    width = max(map(len, tables))
    slots = [
        table[place // block_size] * block_size + place % block_size
        for table, (new, context) in zip(tables, rows, strict=True)
        for place in range(context - new, context)
    ]
    return AttentionMetadata(
        tuple(new for new, _ in rows),
        tuple(context for _, context in rows),
        sum(new == 1 for new, _ in rows),
        torch.tensor([table + table[:1] * (width - len(table)) for table in tables], device=device),
        torch.tensor(slots, device=device),
    )


def attend(
    backend: AttentionBackend, rows: AttentionMetadata, cache: KVCache, qkv: list[Tensor], window: int | None
) -> Tensor:
    return backend.plan(rows, cache).attend(LAYER, *qkv, window=window)
