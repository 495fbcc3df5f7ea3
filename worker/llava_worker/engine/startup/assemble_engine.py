"""Builds an engine around a loaded model: divides the memory of the device and captures CUDA graphs."""

from __future__ import annotations

import logging

from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.kv_cache_size import allocate_cache, fit_cache
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.speculation.drafter import PromptLookupDrafter
from llava_worker.engine.startup.batch_tokens import measure_batch_tokens
from llava_worker.engine.startup.graph_capture import GraphCapture, max_graph_tokens
from llava_worker.engine.startup.plan import StartupPlan
from llava_worker.engine.startup.stored_step_memory import StoredStepMemory
from llava_worker.engine.startup.warmup import (
    StepMemory,
    WarmupSteps,
    check_decode,
    max_tiles_per_step,
    warm_up,
)
from llava_worker.model.attention.kv_cache import KVCacheSpec
from llava_worker.model.gpu.cuda_graphs import GraphPool
from llava_worker.model.llava import Llava
from llava_worker.model.memory_estimate import WORKING_BYTES

__all__ = ["assemble_engine"]

_CPU_TOKEN_GAP_S, _GPU_TOKEN_GAP_S = 0.4, 0.1

logger = logging.getLogger(__name__)


def assemble_engine(
    model: Llava, plan: StartupPlan, pool: GraphPool | None, *, eos_ids: frozenset[int], weights_key: str = ""
) -> Engine:
    """Return an engine for the loaded model. If ``pool`` is None, no CUDA graphs are captured.

    If the weights are stored in the weights cache under ``weights_key``, the memory of a step is also stored.

    Everything that needs memory is measured before the size of the KV cache is determined:

        weights -> step size -> activations of the largest step -> CUDA graphs -> KV cache -> final graphs

    Raises InsufficientMemory if the memory is not enough, and WarmupError if a step fails.
    """
    config, memory = plan.config, plan.memory
    steps = WarmupSteps(model, plan.backend, plan.cache)
    max_batch_tokens = plan.max_batch_tokens or measure_batch_tokens(steps, memory.left_bytes)
    largest = _largest_step(steps, plan, max_batch_tokens, weights_key)
    graphs = GraphCapture(
        model,
        plan.backend,
        pool,
        includes_steps=plan.precision.is_capturable,
        max_tiles=max_tiles_per_step(model, max_batch_tokens),
        max_rows=config.max_num_sequences,
        max_tokens=max_graph_tokens(config.max_num_sequences, max_batch_tokens),
        context_length=steps.context,
    )
    graph_bytes = graphs.measure(steps.scratch, memory.left_bytes)
    del steps  # frees the temporary KV cache
    spec = _fit_cache(plan, largest, graph_bytes)
    context_length = min(model.config.text_config.max_position_embeddings, spec.num_tokens)
    cache = allocate_cache(spec, plan.device)
    runner = ModelRunner(model, cache, plan.backend, EncoderCache(config.encoder_cache_bytes))
    graphs.apply(runner)
    return Engine(
        runner,
        eos_ids=eos_ids,
        context_length=context_length,
        max_num_sequences=config.max_num_sequences,
        max_batch_tokens=max_batch_tokens,
        encoder_cost=model.encoder_cost,
        max_token_gap_s=_max_token_gap_s(plan),
        drafter=PromptLookupDrafter() if config.use_speculation else None,
        is_async=config.use_async_scheduling and plan.device.type == "cuda",
    )


def _largest_step(
    steps: WarmupSteps, plan: StartupPlan, max_batch_tokens: int, weights_key: str
) -> StepMemory:
    """Return the memory of the largest step, which is measured unless it is stored."""
    num_sequences = plan.config.max_num_sequences

    def measure() -> StepMemory:
        return warm_up(steps, max_num_sequences=num_sequences, max_batch_tokens=max_batch_tokens)

    if plan.weights_cache is None or not weights_key:
        return measure()
    settings = [plan.precision.name, plan.cache.is_int8, steps.context, num_sequences, max_batch_tokens]
    stored = StoredStepMemory(plan.weights_cache.folder, weights_key, settings)
    memory = stored.load()
    if memory is None:
        return stored.store(measure())
    check_decode(steps)
    return memory


def _max_token_gap_s(plan: StartupPlan) -> float:
    if plan.config.max_token_gap_s is not None:
        return plan.config.max_token_gap_s
    return _GPU_TOKEN_GAP_S if plan.device.type == "cuda" else _CPU_TOKEN_GAP_S


def _fit_cache(plan: StartupPlan, step: StepMemory, graph_bytes: int) -> KVCacheSpec:
    """Return the spec of the KV cache that fits in the memory that everything else leaves."""
    config, left = plan.config, plan.memory.left_bytes()
    taken = step.num_bytes + graph_bytes + config.encoder_cache_bytes + WORKING_BYTES
    parts = {
        "the largest step": step.num_bytes,
        "CUDA graphs": graph_bytes,
        "the image cache": config.encoder_cache_bytes,
    }
    spec = fit_cache(
        plan.cache,
        plan.model_config,
        left_bytes=None if left is None else left - taken,
        taken=f"The weights, {', '.join(f'{name} ({size >> 20} MiB)' for name, size in parts.items())}",
        advice=plan.memory.advice,
        is_upper_bound=plan.device.type == "cuda" and config.kv_cache_bytes is None,
    )
    logger.info(
        "memory (MiB): %s free after loading weights; %d for the largest step (vision tower %d, prefill %d, "
        "decode %d), %d for CUDA graphs, %d for the image cache, %d reserved, %d for the KV cache (%d blocks "
        "of %d tokens, %s)",
        "unknown" if left is None else left >> 20,
        *(part >> 20 for part in (step.num_bytes, step.tower, step.prefill, step.decode, graph_bytes)),
        *(part >> 20 for part in (config.encoder_cache_bytes, WORKING_BYTES, spec.num_bytes)),
        spec.num_blocks,
        spec.block_size,
        "int8" if spec.is_int8 else str(spec.dtype).removeprefix("torch."),
    )
    return spec
