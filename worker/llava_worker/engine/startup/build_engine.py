"""Builds an engine: plans its memory, loads the weights, runs the warm-up and captures CUDA graphs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.kv_cache_size import allocate_cache, fit_cache, plan_cache
from llava_worker.engine.core.scheduler import require_batch_tokens
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.parallel.rank_group import RankGroup, RankSetup
from llava_worker.engine.speculation.drafter import PromptLookupDrafter
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.graph_capture import capture_graphs
from llava_worker.engine.startup.model_info import ModelInfo
from llava_worker.engine.startup.warmup import max_tiles_per_step, warm_up
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCacheSpec
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import (
    CheckpointError,
    ImageConfig,
    ModelConfig,
    find_vision_tower,
    read_config,
    read_eos_ids,
    read_image_config,
)
from llava_worker.model.gpu.current_gpu import use_device
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import Progress, load_weights
from llava_worker.model.memory_estimate import WORKING_BYTES, available_bytes, require_memory, weight_bytes
from llava_worker.model.quantization.precision import Precision, choose_precision
from llava_worker.model.tensor_parallel import SINGLE_RANK, TensorParallel

__all__ = ["CheckpointError", "ModelInfo", "build_engine", "choose_device", "default_batch_tokens"]

# By default, models up to this size run in fp32, which is exact and not noticeably slower for such small
# models.
SMALL_BYTES = 256 << 20
# Default token budgets of a step. A GPU needs more tokens than a CPU to be fully used by a prompt.
GPU_BATCH_TOKENS, CPU_BATCH_TOKENS = 2048, 512

logger = logging.getLogger(__name__)


def build_engine(
    config: EngineConfig,
    *,
    on_progress: Progress | None = None,
    on_lost_rank: Callable[[str], None] = lambda _: None,
) -> tuple[Engine, ModelInfo]:
    """Load the checkpoint and build an engine. Select the model's GPU in the calling thread.

    If ``config`` does not specify the vision tower, the local folder that the checkpoint names is used.
    If a tensor-parallel rank exits, ``on_lost_rank`` is called in another thread. Its argument is the device
    of the first rank.

    Raises CheckpointError if the checkpoint is not supported, ValueError if a setting is invalid,
    InsufficientMemory (a ValueError) if the model does not fit in memory, and WarmupError if the first step
    of the model fails.
    """
    _set_threads(config)
    config = replace(config, vision_tower=config.vision_tower or find_vision_tower(config.config_folder))
    device = choose_device(config.device, config.tensor_parallel_size)
    use_device(device)
    plan = _Plan.make(config, device)
    stopwatch = _Stopwatch()
    ranks = SINGLE_RANK if config.tensor_parallel_size == 1 else _start_ranks(plan, on_lost_rank)
    model = Llava(
        plan.model_config, plan.image_config, precision=plan.precision, device=plan.device, ranks=ranks
    )
    weights_digest = load_weights(
        model,
        config.checkpoint,
        vision_tower=config.vision_tower,
        base=config.base,
        allow_pickle=config.allow_pickle,
        on_progress=on_progress,
    )
    weights_s = stopwatch.lap()
    cache = _measure_cache(model, plan)
    info = _model_info(plan, cache)
    engine = Engine(
        _build_runner(model, plan, cache, info.context_length),
        eos_ids=info.eos_ids,
        context_length=info.context_length,
        max_num_sequences=config.max_num_sequences,
        max_batch_tokens=plan.max_batch_tokens,
        drafter=PromptLookupDrafter() if config.use_speculation else None,
        is_async=config.use_async_scheduling and plan.device.type == "cuda",
    )
    info = replace(info, weights_digest=weights_digest, weights_s=weights_s, warmup_s=stopwatch.lap())
    return engine, info


def choose_device(name: str, num_ranks: int = 1) -> torch.device:
    """Return the device of the first rank.

    Raises ValueError if torch does not recognize the name, if the GPU does not exist, or if there are fewer
    GPUs than ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        logger.info("device is auto; using %s", name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device {name!r} is not recognized. Use auto, cpu, or a GPU such as cuda:0."
        ) from error
    if device.type == "cuda":
        num_left = torch.cuda.device_count() - (device.index or 0)
        if num_left < 1:
            num_gpus = torch.cuda.device_count()
            available = f"only {num_gpus} GPUs are available" if num_gpus else "no GPU is available"
            raise ValueError(
                f"device is {name}, but {available}, numbered from 0. Choose another device, or auto to use "
                "a GPU if there is one."
            )
        if num_left < num_ranks:
            maximum = max(1, num_left)
            raise ValueError(
                f"tensor_parallel is {num_ranks}, but only {num_left} GPUs are available from {name} "
                f"onward. Set tensor_parallel to {maximum}, or choose another device."
            )
    return device


def default_batch_tokens(device: torch.device) -> int:
    """Return the default of ``max_batch_tokens``. On a CPU, a larger step would delay running sequences."""
    return GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is derived from the settings and the config files before weights are loaded."""

    config: EngineConfig
    model_config: ModelConfig  # the config of one rank's shard
    image_config: ImageConfig
    precision: Precision
    device: torch.device
    backend: AttentionBackend
    max_batch_tokens: int
    cache: KVCacheSpec  # its maximum size; reduced if the largest step needs more memory

    @classmethod
    def make(cls, config: EngineConfig, device: torch.device) -> _Plan:
        num_ranks = config.tensor_parallel_size
        max_batch_tokens = config.max_batch_tokens
        if max_batch_tokens is None:
            max_batch_tokens = default_batch_tokens(device)
        require_batch_tokens(max_batch_tokens, config.max_num_sequences)
        model = read_config(config.config_folder, config.vision_tower)
        image = read_image_config(config.config_folder, config.vision_tower, vision=model.vision_config)
        _require_image_token(config, model)
        is_small = weight_bytes(model, image, "fp32") <= SMALL_BYTES
        precision = choose_precision(config.precision, device, is_small=is_small)
        if num_ranks > 1:
            precision.require_shardable()
            model = model.shard(num_ranks)
        backend = choose_backend(
            precision, model.text_config, device, is_int8_cache=config.kv_cache_dtype == "int8"
        )
        require_memory(model, image, precision=precision.name, device=device, cache_bytes=0)
        free = _free_bytes(device, num_ranks)
        cache = plan_cache(
            model,
            precision,
            kv_cache_dtype=config.kv_cache_dtype,
            device=device,
            max_bytes=config.kv_cache_bytes,
            free_bytes=None if free is None else free - weight_bytes(model, image, precision.name, device),
            block_size=config.block_size or backend.block_size,
            max_num_sequences=config.max_num_sequences,
        )
        require_memory(model, image, precision=precision.name, device=device, cache_bytes=cache.num_bytes)
        return cls(config, model, image, precision, device, backend, max_batch_tokens, cache)

    @property
    def captures_graphs(self) -> bool:
        """Whether to capture CUDA graphs, which are not supported with multiple ranks."""
        return (
            self.config.use_cuda_graphs
            and self.device.type == "cuda"
            and self.config.tensor_parallel_size == 1
        )


def _require_image_token(config: EngineConfig, model: ModelConfig) -> None:
    """Raise CheckpointError if prompts with images would contain an ID outside the vocabulary."""
    vocab_size = model.text_config.vocab_size
    if not 0 <= model.image_token_id < vocab_size:
        path = config.config_folder / "config.json"
        raise CheckpointError(
            f"{path} sets image_token_index to {model.image_token_id}, but text_config.vocab_size is "
            f"{vocab_size}. The ID must be below this size."
        )


def _measure_cache(model: Llava, plan: _Plan) -> KVCacheSpec:
    """Run the warm-up steps and return the spec of the KV cache that fits in the remaining memory."""
    config = plan.config
    step = warm_up(
        model,
        plan.backend,
        plan.cache,
        max_num_sequences=config.max_num_sequences,
        max_batch_tokens=plan.max_batch_tokens,
    )
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()  # release the memory that the warm-up steps used
    free = _free_bytes(plan.device, config.tensor_parallel_size)
    graphs = step.tower if plan.captures_graphs else 0  # CUDA graphs never release their memory
    taken = step.num_bytes + graphs + config.encoder_cache_bytes + WORKING_BYTES
    shape = fit_cache(plan.cache, plan.model_config, left_bytes=None if free is None else free - taken)
    logger.info(
        "memory (MiB): %s free after loading weights; %d for the largest step (vision tower %d, prefill %d, "
        "decode %d), %d for the image cache, %d reserved, %d for the KV cache (%d blocks of %d tokens, %s)",
        "unknown" if free is None else free >> 20,
        *(part >> 20 for part in (step.num_bytes, step.tower, step.prefill, step.decode)),
        *(part >> 20 for part in (config.encoder_cache_bytes, WORKING_BYTES, shape.num_bytes)),
        shape.num_blocks,
        shape.block_size,
        "int8" if config.kv_cache_dtype == "int8" else plan.precision.name,
    )
    return shape


def _build_runner(model: Llava, plan: _Plan, shape: KVCacheSpec, context_length: int) -> ModelRunner:
    """Allocate the caches, and capture CUDA graphs if the device and the precision support them."""
    config = plan.config
    cache = allocate_cache(shape, plan.device)
    cache.prefault(context_length)  # for one full context; the rest is prefaulted while the engine is idle
    runner = ModelRunner(model, cache, plan.backend, EncoderCache(config.encoder_cache_bytes))
    if plan.captures_graphs:
        capture_graphs(
            runner,
            includes_decoding=plan.precision.is_capturable,
            max_rows=config.max_num_sequences,
            max_tiles=max_tiles_per_step(model, plan.max_batch_tokens),
            context_length=context_length,
        )
    return runner


def _start_ranks(plan: _Plan, on_lost: Callable[[str], None]) -> TensorParallel:
    config = plan.config
    setup = RankSetup(
        index=0,
        size=config.tensor_parallel_size,
        port=0,
        device=str(plan.device),
        precision=plan.precision.name,
        attention=plan.backend.name,
        kv_cache_dtype=config.kv_cache_dtype,
        folder=str(config.checkpoint),
        config_folder=str(config.config_folder),
        vision_tower=str(config.vision_tower) if config.vision_tower else None,
        base=str(config.base) if config.base else None,
        allow_pickle=config.allow_pickle,
        num_threads=torch.get_num_threads(),
        log_level=logging.getLogger().getEffectiveLevel(),
    )
    return RankGroup.start(setup, partial(on_lost, setup.device)).ranks


def _set_threads(config: EngineConfig) -> None:
    """Set the number of CPU threads. By default, it is divided equally among the ranks."""
    num_threads = config.num_threads
    if num_threads is None and config.tensor_parallel_size > 1:
        num_threads = max(1, torch.get_num_threads() // config.tensor_parallel_size)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _model_info(plan: _Plan, cache: KVCacheSpec) -> ModelInfo:
    config, image = plan.model_config, plan.image_config
    layout = config.image_layout(image.fit)
    return ModelInfo(
        name=plan.config.checkpoint.resolve().name,
        image_side=layout.side,
        fit=layout.fit,
        background=(0, 0, 0) if layout.has_grid else _background(image),
        tokens_per_tile=config.tokens_per_tile,
        image_token_id=config.image_token_id,
        context_length=min(config.text_config.max_position_embeddings, cache.num_tokens),
        vocab_size=config.text_config.vocab_size,
        eos_ids=read_eos_ids(plan.config.config_folder, config),
        precision=plan.precision.name,
        device=str(plan.device),
        kernels=plan.precision.kernels.origin,
        grid=layout.grid,
        has_image_marks=config.mm_use_im_start_end,
    )


def _free_bytes(device: torch.device, num_ranks: int) -> int | None:
    """Return the free memory per rank in bytes, or None if it is unknown.

    On a CPU, the ranks share the memory; otherwise, each rank uses its own GPU.
    """
    free = available_bytes(device)
    return free if free is None or device.type == "cuda" else free // num_ranks


def _background(image: ImageConfig) -> tuple[int, int, int]:
    """Return the mean color, truncated to integers as in the original LLaVA code.

    For CLIP, it is (122, 116, 104).
    """
    red, green, blue = (int(mean * 255) for mean in image.image_mean)
    return red, green, blue


class _Stopwatch:
    """A stopwatch. Each lap returns the seconds since the previous one."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        began, self._began = self._began, time.monotonic()
        return self._began - began
