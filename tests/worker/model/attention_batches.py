"""Random batches for attention tests, with a paged KV cache whose blocks are in random order."""

from __future__ import annotations

import torch
from llava_worker.model.attention.base import AttentionBackend, AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged_batches import paged_metadata
from torch import Tensor

BLOCK_SIZE, NUM_BLOCKS = 4, 40
LAYER = 1  # the second of two layers; the first one must not affect results

CPU = torch.device("cpu")


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def random_qkv(
    num_tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> list[Tensor]:
    """Return q, k and v, all [tokens, heads, head_dim]. As in the decoder, they are slices of one tensor."""
    qkv = random_tensor(num_tokens, heads + 2 * kv_heads, head_dim, dtype=dtype, device=device)
    return list(torch.split(qkv, [heads, kv_heads, kv_heads], dim=1))


def random_cache(
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    *,
    is_int8: bool = False,
    block_size: int = BLOCK_SIZE,
    is_head_major: bool = False,
    device: torch.device = CPU,
) -> KVCache:
    """Return a two-layer cache in which all slots contain random keys and values."""
    spec = KVCacheSpec(NUM_BLOCKS, block_size, 2, kv_heads, head_dim, dtype, is_int8, is_head_major)
    cache = KVCache(spec, device)
    shape = (spec.num_tokens, kv_heads, head_dim)
    for layer in range(2):
        k, v = (random_tensor(*shape, dtype=dtype, device=device) for _ in range(2))
        cache.write(layer, torch.arange(shape[0], device=device), k, v)
    return cache


def make_metadata(
    rows: list[tuple[int, int]], *, block_size: int = BLOCK_SIZE, device: torch.device = CPU
) -> AttentionMetadata:
    """Return metadata with random blocks. ``rows`` contains (new tokens, context length), in any order."""
    rows = sorted(rows, key=lambda row: row[0] > 1)
    blocks = torch.randperm(NUM_BLOCKS).tolist()
    return paged_metadata(rows, blocks, block_size=block_size, device=device)


def attend(
    backend: AttentionBackend,
    metadata: AttentionMetadata,
    cache: KVCache,
    qkv: list[Tensor],
    window: int | None = None,
) -> Tensor:
    q, k, v = qkv
    return backend.plan(metadata, cache).attend(LAYER, q, k, v, window=window)
