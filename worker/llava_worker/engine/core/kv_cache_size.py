"""The size of the KV cache.

It is planned before the model is loaded and then reduced if necessary to fit in the remaining memory.
"""

from __future__ import annotations

import logging

import torch

from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.available_memory import available_bytes
from llava_worker.model.config.model_config import ModelConfig
from llava_worker.model.memory_estimate import InsufficientMemory
from llava_worker.model.quantization.precision import Precision

__all__ = ["KV_CACHE_DTYPES", "allocate_cache", "fit_cache", "num_spare_tokens", "plan_cache"]

KV_CACHE_DTYPES = ("auto", "int8")

# On a CPU, the KV cache may use at most this fraction of the memory that remains after the weights are
# loaded, because the queue, images and other programs use the same memory.
_SHARE = 0.6
# The default limit on a CPU, unless one full context needs more. Otherwise, the prefix cache would grow until
# it used most of the memory of a large machine.
CPU_BYTES = 4 << 30
FALLBACK_BYTES = 1 << 30
# On a GPU, the cache holds at most this many full contexts, or one for each sequence if there are more
# sequences. Only small models reach this limit. Without it, a model of a few megabytes would fill the GPU,
# and the host would have to manage millions of blocks.
GPU_CONTEXTS = 256
_SPARE_TEXT_TOKENS = 192
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
    is_head_major: bool = False,
    advice: str = "use a smaller model",
) -> KVCacheSpec:
    """Return the spec of the largest KV cache that fits in ``max_bytes``.

    ``free_bytes`` is the device memory that remains after the weights are loaded. If ``max_bytes`` is None,
    the limit is ``free_bytes`` on a GPU and a fraction of ``free_bytes`` on other devices, or FALLBACK_BYTES
    if ``free_bytes`` is also None. On a CPU, the fraction is also capped at CPU_BYTES or the size of one full
    context, whichever is larger. The cache holds at most ``max_num_sequences`` full contexts or, on a GPU, at
    least GPU_CONTEXTS, because memory that running sequences do not need serves the prefix cache. ``advice``
    is the part of the error message that says what to change if ``max_bytes`` is None.

    Raises ValueError if the cache is too small for a single image, or if ``kv_cache_dtype`` is unknown.
    """
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ValueError(f"kv_cache_dtype is {kv_cache_dtype!r}; it must be auto or int8.")
    text = config.text_config
    blocks_per_context = -(-text.max_position_embeddings // block_size)
    num_contexts = max(max_num_sequences, GPU_CONTEXTS) if device.type == "cuda" else max_num_sequences
    spec = KVCacheSpec.for_model(
        text,
        num_blocks=blocks_per_context * num_contexts,
        block_size=block_size,
        dtype=precision.dtype,
        is_int8=kv_cache_dtype == "int8",
        is_head_major=is_head_major,
    )
    is_set = max_bytes is not None
    if max_bytes is None:
        max_bytes = _default_bytes(
            device, free_bytes, context_bytes=blocks_per_context * spec.bytes_per_block
        )
    spec = spec.within(max_bytes)
    if spec.num_tokens <= config.tokens_per_tile:
        needed = _needed(spec, config)
        remedy = f"Set kv_cache_mb to {needed}." if is_set else f"Make {needed} available, or {advice}."
        raise ValueError(
            f"The KV cache is limited to {max_bytes / _MIB:.1f} MiB, {_too_small(spec, config)} {remedy}"
        )
    return spec


def _default_bytes(device: torch.device, free_bytes: int | None, *, context_bytes: int) -> int:
    if free_bytes is None:
        return FALLBACK_BYTES
    if device.type == "cuda":
        return max(0, free_bytes)
    share = int(_SHARE * max(0, free_bytes))
    return min(share, max(CPU_BYTES, context_bytes)) if device.type == "cpu" else share


def fit_cache(
    planned: KVCacheSpec,
    config: ModelConfig,
    *,
    left_bytes: int | None,
    taken: str = "The weights, the largest step and the image cache",
    advice: str = "reduce the maximum number of concurrent sequences",
    is_upper_bound: bool = False,
) -> KVCacheSpec:
    """Return the planned KV cache spec, with fewer blocks if necessary to fit in ``left_bytes``.

    If ``left_bytes`` is None, the size is not limited. ``taken`` and ``advice`` are parts of the error
    message: what takes the other memory, and what to change. If ``is_upper_bound`` is true, the planned size
    was not requested, so no warning is logged if the size is reduced.

    Raises InsufficientMemory if the cache is too small for a single image.
    """
    spec = planned if left_bytes is None else planned.within(left_bytes)
    if left_bytes is not None and spec.num_tokens <= config.tokens_per_tile:
        available = f"{max(0, left_bytes) / _MIB:.1f} MiB"
        raise InsufficientMemory(
            f"{taken} leave {available} for the KV cache, {_too_small(spec, config)} Make "
            f"{_needed(spec, config)} available, or {advice}."
        )
    if spec.num_blocks < planned.num_blocks and not is_upper_bound:
        logger.warning(
            "the KV cache is limited to %d MiB instead of %d MiB because the largest step needs the rest",
            spec.num_bytes // _MIB,
            planned.num_bytes // _MIB,
        )
    if spec.num_tokens < config.text_config.max_position_embeddings:
        logger.warning(
            "the KV cache holds only %d tokens; the context length is reduced from %d tokens accordingly",
            spec.num_tokens,
            config.text_config.max_position_embeddings,
        )
    return spec


def allocate_cache(spec: KVCacheSpec, device: torch.device) -> KVCache:
    """Allocate the KV cache.

    Raises InsufficientMemory if there is not enough memory, for example because another process has allocated
    some of it since the size of the cache was planned.
    """
    try:
        return KVCache(spec, device)
    except (RuntimeError, MemoryError, OSError, OverflowError) as error:  # from torch or the CPU allocator
        size_mib, free_mib = spec.num_bytes // _MIB, (available_bytes(device) or 0) // _MIB
        raise InsufficientMemory(
            f"The KV cache of {size_mib} MiB does not fit on {device}, which has {free_mib} MiB free. Reduce "
            f"the size of the KV cache. ({error})"
        ) from error


def num_spare_tokens(config: ModelConfig, context_length: int) -> int:
    """Return for how many tokens memory on a CPU is allocated before a request needs it.

    This is a prompt with one image tile and some text. The first write to the memory of such a prompt would
    otherwise take up to 4 % of the time to its first token.
    """
    return min(context_length, config.tokens_per_tile + _SPARE_TEXT_TOKENS)


def _too_small(spec: KVCacheSpec, config: ModelConfig) -> str:
    return f"enough for {spec.num_tokens} tokens; one image has {config.tokens_per_tile} tokens."


def _needed(spec: KVCacheSpec, config: ModelConfig) -> str:
    """Describe the smallest KV cache for one image, and the one for a full context."""
    context = config.text_config.max_position_embeddings
    image, full = (
        -(-(num_tokens // spec.block_size + 1) * spec.bytes_per_block // _MIB)
        for num_tokens in (config.tokens_per_tile, context - 1)
    )
    return f"at least {image} MiB ({full} MiB for a full context of {context} tokens)"
