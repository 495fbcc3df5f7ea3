"""Measures how fast attention backends decode, in order to select one at startup."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor

from llava_worker.model.attention.base import DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool, EagerPool, GraphPool
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.precision import Precision

__all__ = ["decode_seconds"]

_NUM_ROWS = (1, 8)
_CONTEXT = 2048  # tokens: a few images and text
_NUM_LAYERS = 4  # so that the keys and values do not fit in the GPU's L2 cache
_NUM_CALLS = 16  # per measurement, so that the launch of the graph does not matter
_NUM_RUNS = 5

logger = logging.getLogger(__name__)


@torch.inference_mode()
def decode_seconds(
    backend: PagedBackend, *, text: TextConfig, precision: Precision, device: torch.device
) -> float:
    """Return how long attention takes for a layer with 1 row and a layer with 8 rows, together.

    As in decode steps, RoPE and the writes to the KV cache are included, and CUDA graphs are used. Returns
    infinity if the backend cannot be captured or the GPU's memory is not sufficient.
    """
    context = min(_CONTEXT, text.max_position_embeddings)
    num_blocks = max(_NUM_ROWS) * -(-context // backend.block_size)
    heads, head_dim = text.num_key_value_heads, text.head_dim
    spec = KVCacheSpec(num_blocks, backend.block_size, _NUM_LAYERS, heads, head_dim, precision.dtype)
    pool: GraphPool = CudaGraphPool(device) if device.type == "cuda" else EagerPool()
    cache: KVCache | None = None
    try:
        cache = KVCache(spec, device)
        seconds = sum(
            _seconds_per_layer(backend, cache, text, precision, pool, num_rows, context)
            for num_rows in _NUM_ROWS
        )
    except RuntimeError as error:
        logger.warning("attention: %s could not be measured: %s", backend.name, error)
        seconds = math.inf
    pool.release()
    cache = None
    torch.cuda.empty_cache()  # the free memory of the GPU is read next; does nothing without CUDA
    logger.info("attention: %s decodes in %.1f us per layer", backend.name, seconds * 1e6)
    return seconds


def _seconds_per_layer(
    backend: PagedBackend,
    cache: KVCache,
    text: TextConfig,
    precision: Precision,
    pool: GraphPool,
    num_rows: int,
    context: int,
) -> float:
    dtype, device = cache.dtype, cache.layer(0).keys.device
    num_blocks = -(-context // cache.block_size)
    tables = torch.arange(num_rows * num_blocks, dtype=torch.int32, device=device).view(num_rows, num_blocks)
    metadata = DecodeMetadata(
        slot_mapping=tables[:, -1].long() * cache.block_size + (context - 1) % cache.block_size,
        context_lens=torch.full((num_rows,), context, dtype=torch.int32, device=device),
        block_tables=tables,
    )
    kv_heads, half = text.num_key_value_heads, text.head_dim // 2
    qkv = torch.ones(
        num_rows, text.num_attention_heads + 2 * kv_heads, text.head_dim, dtype=dtype, device=device
    )
    angles = torch.ones(num_rows, 1, half, dtype=dtype, device=device)
    rotation = Rotation(angles.cos(), angles.sin(), precision.kernels)

    def compute() -> Tensor:
        plan = backend.decode_plan(metadata, cache)
        assert plan is not None
        for call in range(_NUM_CALLS):
            out = plan.rope_and_attend(call % _NUM_LAYERS, qkv, rotation, kv_heads=kv_heads)
        return out

    pool.warm_up(compute)
    _, replay = pool.capture(compute)
    times = []
    for _ in range(_NUM_RUNS):
        _wait(device)
        began = time.perf_counter()
        replay()
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times) / _NUM_CALLS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
