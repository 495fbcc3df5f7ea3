"""Chooses the number of tokens per step on a GPU by measuring the throughput of prompts.

A larger step uses the GPU better, but delays running sequences for longer and needs more memory. The smallest
size with nearly the best throughput is chosen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from llava_worker.engine.startup.warmup import WarmupSteps, step_errors
from llava_worker.model.memory_estimate import InsufficientMemory

__all__ = ["CANDIDATES", "measure_batch_tokens", "smallest_near_peak"]

CANDIDATES = (2048, 4096, 8192)
_NEAR_PEAK = 0.95  # fraction of the best throughput
_MAX_SHARE = 0.25  # fraction of the free memory that the activations of a step may need
_RUNS = 2  # measured runs per candidate, after one that is not measured

logger = logging.getLogger(__name__)


def measure_batch_tokens(steps: WarmupSteps, left_bytes: Callable[[], int | None]) -> int:
    """Return the best number of tokens per step. ``left_bytes`` returns the memory that can be allocated.

    Sizes that need too much of this memory are skipped, except for the smallest.
    """
    rates: dict[int, float] = {}
    for num_tokens in CANDIDATES:
        left = left_bytes()
        try:
            with step_errors(steps, f"{num_tokens} tokens"):
                num_bytes = steps.prompts(num_tokens)  # not measured: kernels are selected in the first run
                if rates and left is not None and num_bytes > _MAX_SHARE * left:
                    break
                rates[num_tokens] = num_tokens / min(_seconds(steps, num_tokens) for _ in range(_RUNS))
        except InsufficientMemory:
            if not rates:
                raise
            break
    chosen = smallest_near_peak(rates)
    measured = ", ".join(f"{rate:.0f} tokens/s with {size}" for size, rate in rates.items())
    logger.info("max_batch_tokens: measured %s; using %d", measured, chosen)
    return chosen


def smallest_near_peak(rates: Mapping[int, float]) -> int:
    """Return the smallest size whose rate is nearly the highest. ``rates`` must not be empty."""
    peak = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= _NEAR_PEAK * peak)


def _seconds(steps: WarmupSteps, num_tokens: int) -> float:
    began = time.perf_counter()
    steps.prompts(num_tokens)  # waits for the device
    return time.perf_counter() - began
