"""A step for which the device has no memory: made again in halves; who does not fit alone fails alone.

What a step needs was measured at the start, so this is for what nobody foresaw: another program on the same
GPU, or memory in too many pieces. Chunks of one step do not see each other; computing them apart is the same.
"""

from __future__ import annotations

import logging

import torch

from llava_worker.engine.core.in_flight_step import Choice, Flight, StepResult, landed
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.model_runner import ModelRunner

__all__ = ["launch_in_memory"]

logger = logging.getLogger(__name__)


def launch_in_memory(runner: ModelRunner, chunks: list[Chunk]) -> Flight:
    """As ``runner.launch``, with a failure for each sequence whose chunk does not fit even alone."""
    try:
        return runner.launch(chunks)
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Outside of the handler, whose traceback keeps the failed step's tensors alive.
    runner.shed()
    if len(chunks) == 1:
        logger.error("seq_id=%s: a step of it alone finds no memory: %s", chunks[0].sequence.seq_id, reason)
        told = "the worker's memory is too short for it: try again later, or ask for less"
        failure = Choice(None, error=told, error_code="internal_error")
        return landed(chunks, [StepResult(chunks[0], [failure])])
    logger.warning("a step of %d sequences finds no memory, trying halves: %s", len(chunks), reason)
    half = len(chunks) // 2
    parts = (launch_in_memory(runner, part).read() for part in (chunks[:half], chunks[half:]))
    return landed(chunks, [result for part in parts for result in part])
