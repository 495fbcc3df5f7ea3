"""Out of memory in a step: it is split in halves; a sequence that does not fit alone fails alone.

The memory of the largest step was measured at startup, so this handles what the measurement cannot cover:
another program on the same GPU, or fragmentation. The chunks of a step are independent of each other.
"""

from __future__ import annotations

import logging

import torch
from llava_wire.messages.event import ErrorCode, JobError

from llava_worker.engine.core.in_flight_step import InFlightStep, completed
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.step_result import ChunkResult
from llava_worker.engine.model_runner import ModelRunner

__all__ = ["launch_with_oom_retry"]

_OUT_OF_MEMORY = "the worker's memory is too short for it: try again later, or ask for less"

logger = logging.getLogger(__name__)


def launch_with_oom_retry(runner: ModelRunner, chunks: list[Chunk]) -> InFlightStep:
    """As ``runner.launch``, with an INSUFFICIENT_MEMORY result for each chunk that does not fit even
    alone."""
    try:
        return runner.launch(chunks)
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Outside of the handler: its traceback keeps the failed step's tensors alive.
    runner.release_memory()
    if len(chunks) == 1:
        logger.error("seq_id=%s: a step of it alone finds no memory: %s", chunks[0].sequence.seq_id, reason)
        failure = JobError(ErrorCode.INSUFFICIENT_MEMORY, _OUT_OF_MEMORY)
        return completed([], [ChunkResult(chunks[0], [], failure)])
    logger.warning("a step of %d sequences finds no memory, trying halves: %s", len(chunks), reason)
    half = len(chunks) // 2
    computed, results = [], []
    for part in (chunks[:half], chunks[half:]):
        step = launch_with_oom_retry(runner, part)
        results += step.read()
        computed += step.chunks
    return completed(computed, results)
