"""The startup plan: everything that is derived from settings and config files before weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from llava_worker.engine.core.kv_cache_size import plan_cache
from llava_worker.engine.core.scheduler import require_batch_tokens
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.memory_budget import MemoryBudget
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCacheSpec
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import (
    CheckpointError,
    ImageConfig,
    ModelConfig,
    read_config,
    read_image_config,
)
from llava_worker.model.gpu.decode_speed import decode_seconds
from llava_worker.model.loading.weights_cache import WeightsCache
from llava_worker.model.memory_estimate import WORKING_BYTES, require_memory, weight_bytes
from llava_worker.model.quantization.precision import Precision, choose_precision

__all__ = ["SMALL_BYTES", "StartupPlan"]

# By default, models up to this size run in fp32, which is exact and not noticeably slower for such small
# models.
SMALL_BYTES = 256 << 20
CPU_BATCH_TOKENS = 512  # a larger step would delay running sequences


@dataclass(frozen=True, slots=True)
class StartupPlan:
    """The plan for one rank. The plans of all ranks are equal, except for their devices."""

    config: EngineConfig
    model_config: ModelConfig  # the config of one rank's shard
    image_config: ImageConfig
    precision: Precision
    device: torch.device
    backend: AttentionBackend
    max_batch_tokens: int | None  # None if it has to be measured
    cache: KVCacheSpec  # its maximum size; reduced if the largest step needs more memory
    memory: MemoryBudget

    @classmethod
    def make(cls, config: EngineConfig, device: torch.device, memory: MemoryBudget) -> StartupPlan:
        """Read the config files. Raises CheckpointError, or ValueError if a setting is invalid."""
        max_batch_tokens = config.max_batch_tokens
        if max_batch_tokens is None and device.type != "cuda":
            max_batch_tokens = CPU_BATCH_TOKENS
        if max_batch_tokens is not None:
            require_batch_tokens(max_batch_tokens, config.max_num_sequences)
        model = read_config(config.config_folder, config.vision_tower)
        image = read_image_config(config.config_folder, config.vision_tower, vision=model.vision_config)
        _require_image_token(config, model)
        is_small = weight_bytes(model, image, "fp32") <= SMALL_BYTES
        precision = choose_precision(config.precision, device, is_small=is_small)
        if config.tensor_parallel_size > 1:
            precision.require_shardable()
            model = model.shard(config.tensor_parallel_size)
        backend = choose_backend(
            precision,
            model.text_config,
            device,
            is_int8_cache=config.kv_cache_dtype == "int8",
            measure=partial(decode_seconds, text=model.text_config, precision=precision, device=device),
        )
        cache = _plan_cache(config, model, image, precision, backend, memory)
        return cls(config, model, image, precision, device, backend, max_batch_tokens, cache, memory)

    @property
    def weights_cache(self) -> WeightsCache | None:
        """The cache for packed weights, which is used only on a CPU."""
        config = self.config
        if config.weights_cache is None or self.device.type != "cpu":
            return None
        return WeightsCache(config.weights_cache, config.min_cached_bytes)

    @property
    def captures_graphs(self) -> bool:
        """Whether to capture CUDA graphs."""
        return self.config.use_cuda_graphs and self.device.type == "cuda"


def _require_image_token(config: EngineConfig, model: ModelConfig) -> None:
    """Raise CheckpointError if prompts with images would contain an ID outside the vocabulary."""
    vocab_size = model.text_config.vocab_size
    if not 0 <= model.image_token_id < vocab_size:
        path = config.config_folder / "config.json"
        raise CheckpointError(
            f"{path} sets image_token_index to {model.image_token_id}, but text_config.vocab_size is "
            f"{vocab_size}. The ID must be below this size."
        )


def _plan_cache(
    config: EngineConfig,
    model: ModelConfig,
    image: ImageConfig,
    precision: Precision,
    backend: AttentionBackend,
    memory: MemoryBudget,
) -> KVCacheSpec:
    """Return the largest KV cache that the settings and the size of the weights permit.

    Raises InsufficientMemory if the weights do not fit, and ValueError if the cache would be too small.
    """
    device, free = memory.device, memory.left_bytes()

    def require(cache_bytes: int) -> None:
        require_memory(
            model,
            image,
            precision=precision.name,
            device=device,
            cache_bytes=cache_bytes,
            free_bytes=free if device.type == "cuda" else None,
            limit=memory.limit,
        )

    require(0)
    weights = weight_bytes(model, image, precision.name, device)
    reserved = WORKING_BYTES if device.type == "cuda" else 0
    cache = plan_cache(
        model,
        precision,
        kv_cache_dtype=config.kv_cache_dtype,
        device=device,
        max_bytes=config.kv_cache_bytes,
        free_bytes=None if free is None else free - weights - reserved,
        block_size=config.block_size or backend.block_size,
        is_head_major=backend.is_head_major,
        max_num_sequences=config.max_num_sequences,
        advice=memory.advice,
    )
    require(cache.num_bytes)
    return cache
