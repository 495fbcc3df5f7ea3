"""The size of the KV cache: planned before the model is loaded, reduced to what the largest step leaves."""

from __future__ import annotations

import logging

import torch

from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.config.model_config import ModelConfig
from llava_worker.model.memory_budget import InsufficientMemory, available_bytes
from llava_worker.model.quantization.precision import Precision

__all__ = ["KV_CACHE_DTYPES", "allocate_cache", "fit_cache", "plan_cache"]

KV_CACHE_DTYPES = ("auto", "int8")

# The largest share of the memory left beside the weights. A GPU is expected to be the worker's alone; a CPU's
# memory is shared with the queue, the images and other programs.
_SHARES = {"cuda": 0.95}
_SHARE = 0.6
# The default limit on a CPU, or one full context if that is more: the cache is written once at startup, and
# writing all memory of a large machine would take most of the startup time.
CPU_BYTES = 4 << 30
FALLBACK_BYTES = 1 << 30
_MIB = 1 << 20

logger = logging.getLogger(__name__)


def plan_cache(
    config: ModelConfig,
    precision: Precision,
    *,
    kv_cache_dtype: str,
    device: torch.device,
    max_bytes: int | None,
    free_bytes: int | None,
    block_size: int,
    max_num_sequences: int,
) -> KVCacheSpec:
    """As many blocks as ``max_num_sequences`` full contexts need, within ``max_bytes``.

    Without ``max_bytes`` the bound is a share of ``free_bytes``, what the device has beside the weights, or
    FALLBACK_BYTES where that is unknown; on a CPU no more than CPU_BYTES or one full context.

    Raises ValueError if not even one image fits, or for an unknown ``kv_cache_dtype``.
    """
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ValueError(f"kv_cache_dtype is {kv_cache_dtype!r}; it must be auto or int8")
    text = config.text_config
    blocks_per_context = -(-text.max_position_embeddings // block_size)
    spec = KVCacheSpec.for_model(
        text,
        num_blocks=blocks_per_context * max_num_sequences,
        block_size=block_size,
        dtype=precision.dtype,
        is_int8=kv_cache_dtype == "int8",
    )
    if max_bytes is None:
        max_bytes = _default_bytes(
            device, free_bytes, context_bytes=blocks_per_context * spec.bytes_per_block
        )
    spec = spec.within(max_bytes)
    if spec.num_tokens <= config.tokens_per_tile:
        raise ValueError(f"the KV cache may take {max_bytes} bytes, {_too_small(spec, config)}")
    return spec


def _default_bytes(device: torch.device, free_bytes: int | None, *, context_bytes: int) -> int:
    if free_bytes is None:
        return FALLBACK_BYTES
    share = int(_SHARES.get(device.type, _SHARE) * max(0, free_bytes))
    return min(share, max(CPU_BYTES, context_bytes)) if device.type == "cpu" else share


def fit_cache(planned: KVCacheSpec, config: ModelConfig, *, left_bytes: int | None) -> KVCacheSpec:
    """The planned cache, or less of it where ``left_bytes`` beside everything else are not enough.

    None: unlimited. Raises InsufficientMemory if not even one image fits.
    """
    spec = planned if left_bytes is None else planned.within(left_bytes)
    if left_bytes is not None and spec.num_tokens <= config.tokens_per_tile:
        raise InsufficientMemory(
            f"weights, the largest step and the picture cache leave {max(0, left_bytes)} bytes to the KV "
            f"cache, {_too_small(spec, config)}, or have fewer answers computed at once"
        )
    if spec.num_blocks < planned.num_blocks:
        logger.warning(
            "the KV cache gets %d MiB instead of %d: that is what the largest step leaves",
            spec.num_bytes // _MIB,
            planned.num_bytes // _MIB,
        )
    if spec.num_tokens < config.text_config.max_position_embeddings:
        logger.warning(
            "the KV cache holds %d tokens, less than the model's context of %d: prompts are limited to that",
            spec.num_tokens,
            config.text_config.max_position_embeddings,
        )
    return spec


def allocate_cache(spec: KVCacheSpec, device: torch.device) -> KVCache:
    """Raises InsufficientMemory: another process may have taken what was free when the cache was planned."""
    try:
        return KVCache(spec, device)
    except (RuntimeError, MemoryError, OSError, OverflowError) as error:  # torch's own, and a CPU's
        raise InsufficientMemory(
            f"a KV cache of {spec.num_bytes // _MIB} MiB does not fit on {device}, which has "
            f"{(available_bytes(device) or 0) // _MIB} MiB free: give it less ({error})"
        ) from error


def _too_small(spec: KVCacheSpec, config: ModelConfig) -> str:
    needed = spec.bytes_per_block * -(-config.text_config.max_position_embeddings // spec.block_size)
    return (
        f"room for {spec.num_tokens} tokens; one picture takes {config.tokens_per_tile}: "
        f"give it at least {needed}"
    )
