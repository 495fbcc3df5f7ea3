"""From a folder to a running engine, everything sized once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from llava_worker.engine.core.encoder_cache import VisionCache
from llava_worker.engine.core.kv_cache_size import allocate_cache, plan_cache, settle_cache
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.parallel.rank_group import RankGroup, Setup
from llava_worker.engine.speculation.drafter import PromptLookup
from llava_worker.engine.startup.checkpoint_paths import Folders, choose_device, read_folders
from llava_worker.engine.startup.graph_capture import record_steps
from llava_worker.engine.startup.model_info import ModelInfo
from llava_worker.engine.startup.warmup import most_tiles, warm_up
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCacheSpec
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import CheckpointError, ImageConfig, ModelConfig, read_eos_ids
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import Progress, load_weights
from llava_worker.model.memory_budget import WORKING_BYTES, available_bytes, require_memory, weight_bytes
from llava_worker.model.quantization.precision import Precision, choose_precision
from llava_worker.model.tensor_parallel import SINGLE_RANK, TensorParallel

__all__ = ["CheckpointError", "ModelInfo", "load_engine"]

# Up to here fp32 costs neither noticeable memory nor time, and is exact.
SMALL_BYTES = 256 << 20

logger = logging.getLogger(__name__)


def load_engine(
    folder: str | Path,
    *,
    precision: str = "auto",
    device: str = "auto",
    max_num_sequences: int = 16,
    max_batch_tokens: int = 512,
    kv_cache_bytes: int | None = None,
    kv_cache_dtype: str = "auto",
    is_speculating: bool = True,
    is_recording: bool = True,
    is_overlapping: bool = True,
    vision_cache_bytes: int = 256 << 20,
    block_size: int | None = None,
    num_threads: int | None = None,
    tensor_parallel: int = 1,
    on_lost_rank: Callable[[str], None] = lambda _: None,
    vision_tower: str | Path | None = None,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    on_progress: Progress | None = None,
) -> tuple[Engine, ModelInfo]:
    """Load the checkpoint in ``folder`` and make an engine around it.

    ``precision`` is auto or one of PRECISIONS; ``device`` auto or a torch device. The KV cache takes at most
    ``kv_cache_bytes`` (None: a share of what is free beside the weights), no more than ``max_num_sequences``
    full contexts need, and what the largest step leaves. ``block_size`` None is what attention wants.
    ``is_speculating`` guesses answers ahead where that pays; on a GPU ``is_recording`` records steps and
    ``is_overlapping`` launches them ahead. A thread calls ``on_lost_rank`` if one of several ranks ends.

    Raises CheckpointError for a folder that can't be served and ValueError for a wrong setting, of these
    InsufficientMemory for a model that does not fit, and WarmupError for one that fails at its first step.
    """
    _set_threads(num_threads, tensor_parallel)
    memory = _Memory(kv_cache_bytes, kv_cache_dtype, vision_cache_bytes)
    bounds = _Bounds(max_num_sequences, max_batch_tokens, memory, is_recording, tensor_parallel)
    plan = _Plan.of(Folders.of(folder, vision_tower, base), precision, device, bounds, block_size)
    watch = _Stopwatch()
    ranks = SINGLE_RANK if tensor_parallel == 1 else _start_ranks(plan, bounds, allow_pickle, on_lost_rank)
    model = Llava(plan.config, plan.image, precision=plan.precision, device=plan.device, ranks=ranks)
    load_weights(
        model,
        plan.files.folder,
        vision_tower=plan.files.vision_tower,
        base=plan.files.base,
        allow_pickle=allow_pickle,
        on_progress=on_progress,
    )
    weights_s = watch.lap()
    runner, info = _prepare(model, plan, bounds)
    engine = Engine(
        runner,
        eos_ids=info.eos_ids,
        context_length=info.context_length,
        max_num_sequences=max_num_sequences,
        max_batch_tokens=max_batch_tokens,
        drafter=PromptLookup() if is_speculating else None,
        is_overlapping=is_overlapping and plan.device.type == "cuda",
    )
    return engine, replace(info, weights_s=weights_s, warmup_s=watch.lap())


@dataclass(frozen=True, slots=True)
class _Memory:
    """What the caches may take."""

    kv_cache_bytes: int | None
    kv_cache_dtype: str
    vision_cache_bytes: int


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What the caller of `load_engine` set."""

    max_num_sequences: int
    max_batch_tokens: int
    memory: _Memory
    is_recording: bool
    num_ranks: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is decided before the model is loaded."""

    files: Folders
    config: ModelConfig  # a rank's share
    image: ImageConfig
    precision: Precision
    device: torch.device
    backend: AttentionBackend
    cache: KVCacheSpec  # which the largest step may make smaller

    @classmethod
    def of(
        cls, files: Folders, precision: str, device: str, bounds: _Bounds, block_size: int | None
    ) -> _Plan:
        where = choose_device(device, bounds.num_ranks)
        config, image = read_folders(files)
        is_small = weight_bytes(config, image, "fp32") <= SMALL_BYTES
        number_format = choose_precision(precision, where, is_small=is_small)
        if bounds.num_ranks > 1:
            number_format.require_shardable()
            config = config.shard(bounds.num_ranks)
        backend = choose_backend(number_format, config.text_config, where)
        cache = plan_cache(
            config,
            number_format,
            kv_cache_dtype=bounds.memory.kv_cache_dtype,
            device=where,
            max_bytes=bounds.memory.kv_cache_bytes,
            free_bytes=_free_beside_weights(config, image, number_format, where, bounds.num_ranks),
            block_size=block_size or backend.block_size,
            max_num_sequences=bounds.max_num_sequences,
        )
        require_memory(config, image, precision=number_format.name, device=where, cache_bytes=cache.num_bytes)
        return cls(files, config, image, number_format, where, backend, cache)

    def records(self, bounds: _Bounds) -> bool:
        """Of several ranks the followers would have to replay, too."""
        return bounds.is_recording and self.device.type == "cuda" and bounds.num_ranks == 1


def _prepare(model: Llava, plan: _Plan, bounds: _Bounds) -> tuple[ModelRunner, ModelInfo]:
    """Make the first steps, the caches and, where device and number format allow it, the recordings."""
    shape = _settle(model, plan, bounds)
    info, cache = _describe(plan, shape), allocate_cache(shape, plan.device)
    cache.prefault(
        info.context_length
    )  # for the first long request; the engine takes the rest while it is idle
    runner = ModelRunner(model, cache, plan.backend, VisionCache(bounds.memory.vision_cache_bytes))
    if plan.records(bounds):
        record_steps(
            runner,
            is_decoding=plan.precision.is_capturable,
            max_rows=bounds.max_num_sequences,
            max_tiles=most_tiles(model, bounds.max_batch_tokens),
            context_length=info.context_length,
        )
    return runner, info


def _settle(model: Llava, plan: _Plan, bounds: _Bounds) -> KVCacheSpec:
    """Make the first steps; the KV cache that they, the picture cache and torch itself leave room for."""
    step = warm_up(
        model,
        plan.backend,
        plan.cache,
        max_num_sequences=bounds.max_num_sequences,
        max_batch_tokens=bounds.max_batch_tokens,
    )
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()  # what the steps gave back to torch is free for the cache
    free = _free_of_rank(plan.device, bounds.num_ranks)
    recorded = step.tower if plan.records(bounds) else 0  # a recording keeps its memory
    taken = step.num_bytes + recorded + bounds.memory.vision_cache_bytes + WORKING_BYTES
    shape = settle_cache(plan.cache, plan.config, left_bytes=None if free is None else free - taken)
    logger.info(
        "memory, MiB: %s free beside the weights; %d for the largest step (tower %d, prompts %d, answers "
        "%d), %d for pictures, %d set aside, %d for the KV cache: %d blocks of %d tokens in %s",
        "unknown" if free is None else free >> 20,
        *(part >> 20 for part in (step.num_bytes, step.tower, step.prefill, step.decode)),
        *(part >> 20 for part in (bounds.memory.vision_cache_bytes, WORKING_BYTES, shape.num_bytes)),
        shape.num_blocks,
        shape.block_size,
        "int8" if bounds.memory.kv_cache_dtype == "int8" else plan.precision.name,
    )
    return shape


def _start_ranks(
    plan: _Plan, bounds: _Bounds, allow_pickle: bool, on_lost: Callable[[str], None]
) -> TensorParallel:
    files = plan.files
    setup = Setup(
        index=0,
        size=bounds.num_ranks,
        port=0,
        device=str(plan.device),
        precision=plan.precision.name,
        attention=plan.backend.name,
        kv_cache_dtype=bounds.memory.kv_cache_dtype,
        folder=str(files.folder),
        config_folder=str(files.config),
        vision_tower=str(files.vision_tower) if files.vision_tower else None,
        base=str(files.base) if files.base else None,
        allow_pickle=allow_pickle,
        num_threads=torch.get_num_threads(),
        log_level=logging.getLogger().getEffectiveLevel(),
    )
    return RankGroup.start(setup, partial(on_lost, setup.device)).ranks


def _set_threads(num: int | None, num_ranks: int) -> None:
    """Ranks on one CPU share its cores."""
    if num is None and num_ranks > 1:
        num = max(1, torch.get_num_threads() // num_ranks)
    if num is not None:
        torch.set_num_threads(num)


def _describe(plan: _Plan, shape: KVCacheSpec) -> ModelInfo:
    config, image = plan.config, plan.image
    pictures = config.image_layout(image.fit)
    return ModelInfo(
        name=plan.files.folder.resolve().name,
        image_side=pictures.side,
        fit=pictures.fit,
        background=(0, 0, 0) if pictures.has_grid else _background(image),
        tokens_per_tile=config.tokens_per_tile,
        image_token_id=config.image_token_id,
        context_length=min(config.text_config.max_position_embeddings, shape.num_tokens),
        vocab_size=config.text_config.vocab_size,
        eos_ids=read_eos_ids(plan.files.config, config),
        precision=plan.precision.name,
        device=str(plan.device),
        grid=pictures.grid,
        has_image_marks=config.mm_use_im_start_end,
    )


def _free_beside_weights(
    config: ModelConfig, image: ImageConfig, precision: Precision, device: torch.device, num_ranks: int
) -> int | None:
    """Bytes; None where nobody can tell. Raises InsufficientMemory if there are none."""
    require_memory(config, image, precision=precision.name, device=device, cache_bytes=0)
    free = _free_of_rank(device, num_ranks)
    return None if free is None else free - weight_bytes(config, image, precision.name, device)


def _free_of_rank(device: torch.device, num_ranks: int) -> int | None:
    """A CPU's memory is all ranks', a GPU's is one's."""
    free = available_bytes(device)
    return free if free is None or device.type == "cuda" else free // num_ranks


def _background(image: ImageConfig) -> tuple[int, int, int]:
    """The mean colour, cut to whole numbers as the original does: (122, 116, 104) for CLIP."""
    red, green, blue = (int(mean * 255) for mean in image.image_mean)
    return red, green, blue


class _Stopwatch:
    """Seconds since the last time it was looked at."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        began, self._began = self._began, time.monotonic()
        return self._began - began
