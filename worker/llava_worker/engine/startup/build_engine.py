"""Builds an engine: plans its memory, loads the weights and assembles the engine."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from llava_worker.engine.engine import Engine
from llava_worker.engine.parallel.choose_all_reduce import choose_all_reduce
from llava_worker.engine.parallel.rank_group import RankGroup, RankSetup
from llava_worker.engine.startup.assemble_engine import assemble_engine
from llava_worker.engine.startup.device import choose_device
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.memory_budget import MemoryBudget
from llava_worker.engine.startup.model_info import ModelInfo
from llava_worker.engine.startup.plan import StartupPlan
from llava_worker.model.config.model_config import (
    CheckpointError,
    ImageConfig,
    find_vision_tower,
    read_eos_ids,
)
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool
from llava_worker.model.gpu.current_gpu import use_device
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import LoadedWeights, Progress, load_weights
from llava_worker.model.memory_estimate import weight_bytes
from llava_worker.model.tensor_parallel import SINGLE_RANK, TensorParallel

__all__ = ["CheckpointError", "ModelInfo", "build_engine"]

_MIN_THREAD_BYTES = 16 << 20  # weights per CPU thread, which are read in about 1 ms


def build_engine(
    config: EngineConfig,
    *,
    on_progress: Progress | None = None,
    on_lost_rank: Callable[[str], None] = lambda _: None,
    defers_store: bool = False,
) -> tuple[Engine, ModelInfo]:
    """Load the checkpoint and build an engine. Select the model's GPU in the calling thread.

    If ``config`` does not specify the vision tower, the local folder that the checkpoint names is used.
    If a tensor-parallel rank exits, ``on_lost_rank`` is called in another thread. Its argument is the device
    of the first rank. On a GPU, the calling thread must not exit before the engine is no longer used, because
    it captures the CUDA graphs.

    Weights that were read from the checkpoint are stored in the weights cache, if there is one. If
    ``defers_store`` is true and there is only one rank, the caller must store them.

    Raises CheckpointError if the checkpoint is not supported, ValueError if a setting is invalid,
    InsufficientMemory (a ValueError) if the model does not fit in memory, and WarmupError if the first step
    of the model fails.
    """
    config = replace(config, vision_tower=config.vision_tower or find_vision_tower(config.config_folder))
    device = choose_device(config.device, config.tensor_parallel_size)
    use_device(device)
    memory = MemoryBudget.measure(
        device, num_ranks=config.tensor_parallel_size, gpu_utilization=config.gpu_memory_utilization
    )
    plan = StartupPlan.make(config, device, memory)
    torch.set_num_threads(_num_threads(plan))
    stopwatch = _Stopwatch()
    ranks = SINGLE_RANK if config.tensor_parallel_size == 1 else _start_ranks(plan, on_lost_rank)
    model = Llava(plan.model_config, plan.image_config, precision=plan.precision, device=device, ranks=ranks)
    weights = _load_weights(model, plan, on_progress)
    if weights.unstored is not None and not (defers_store and ranks.size == 1):
        weights = weights._replace(mapped_bytes=weights.unstored.store_now(), unstored=None)
    plan = replace(plan, memory=replace(memory, mapped_bytes=weights.mapped_bytes))
    weights_s = stopwatch.lap()
    if ranks.size > 1:
        choose_all_reduce(ranks, plan.precision.dtype, plan.model_config.text_config.hidden_size)
    eos_ids = read_eos_ids(config.config_folder, plan.model_config)
    pool = CudaGraphPool(device) if plan.captures_graphs else None
    if pool is not None and config.tensor_parallel_size > 1:
        # NCCL waits for captured graphs before it destroys a communicator. Runs before `RankGroup.close`.
        atexit.register(pool.release)
    engine = assemble_engine(model, plan, pool, eos_ids=eos_ids, weights_key=weights.key)
    info = replace(
        _model_info(plan, engine.context_length, eos_ids),
        weights_digest=weights.digest,
        weights_s=weights_s,
        warmup_s=stopwatch.lap(),
        unstored_weights=weights.unstored,
    )
    return engine, info


def _load_weights(model: Llava, plan: StartupPlan, on_progress: Progress | None) -> LoadedWeights:
    config = plan.config
    return load_weights(
        model,
        config.checkpoint,
        vision_tower=config.vision_tower,
        base=config.base,
        allow_pickle=config.allow_pickle,
        on_progress=on_progress,
        cache=plan.weights_cache,
    )


def _start_ranks(plan: StartupPlan, on_lost: Callable[[str], None]) -> TensorParallel:
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
        weights_cache=str(config.weights_cache) if config.weights_cache else None,
        min_cached_bytes=config.min_cached_bytes,
        log_level=logging.getLogger().getEffectiveLevel(),
    )
    return RankGroup.start(setup, partial(on_lost, setup.device)).ranks


def _num_threads(plan: StartupPlan) -> int:
    """Return the number of CPU threads of each rank. By default, the ranks share one thread per core equally.

    Small models get fewer threads, because the threads wait for each other after each product.
    """
    if plan.config.num_threads is not None:
        return plan.config.num_threads
    num_threads = torch.get_num_threads() // plan.config.tensor_parallel_size
    if plan.device.type == "cpu":
        weights = weight_bytes(plan.model_config, plan.image_config, plan.precision.name, plan.device)
        num_threads = min(num_threads, weights // _MIN_THREAD_BYTES)
    return max(1, num_threads)


def _model_info(plan: StartupPlan, context_length: int, eos_ids: frozenset[int]) -> ModelInfo:
    config, image = plan.model_config, plan.image_config
    return ModelInfo(
        name=plan.config.checkpoint.resolve().name,
        layout=config.image_layout(image.fit),
        background=_background(image),
        image_token_id=config.image_token_id,
        context_length=context_length,
        vocab_size=config.text_config.vocab_size,
        eos_ids=eos_ids,
        precision=plan.precision.name,
        device=str(plan.device),
        kernels=plan.precision.kernels.origin,
        has_image_marks=config.mm_use_im_start_end,
    )


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
