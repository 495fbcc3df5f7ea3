"""Async scheduling: the host plans and launches step k+1 before it reads the tokens of step k, so that the
device computes while the host appends, finishes, emits and plans.

                launch k      launch k+1   read k   launch k+2   read k+1
    host        |schedule|    |schedule|   |wait...|postprocess k|emit|schedule|   |wait...
    device                |step k...............|step k+1...............|step k+2....

A step is launched ahead only if it is the one that would be scheduled after the step before it: all running
sequences decode, the schedule does not depend on their tokens, and no waiting sequence can be admitted. Then
the tokens go from step to step on the device. Otherwise each step is launched after the one before was read.

A sequence that ended meanwhile has one row too many in the step ahead. Its token is dropped, it is written
behind what others may share, and its blocks can be reused at once: a device executes its steps in order, so
the next user of the blocks writes later.
"""

from __future__ import annotations

import logging
import time

import torch
from llava_wire.messages.event import ErrorCode, JobError

from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.scheduler import Chunk, Scheduler
from llava_worker.engine.core.step_result import ChunkResult, StepResult
from llava_worker.engine.model_runner import InFlightStep, ModelRunner, completed
from llava_worker.engine.speculation.speculative_decoding import SpeculativeDecoding, is_draftable

__all__ = ["AsyncPipeline", "launch_with_oom_retry"]

_OUT_OF_MEMORY = "the worker's memory is too short for it: try again later, or ask for less"


logger = logging.getLogger(__name__)


class AsyncPipeline:
    """Schedules, launches and reads steps. At most two are in flight during `next`, at most one between
    calls."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        speculation: SpeculativeDecoding,
        blocks: BlockManager,
        *,
        is_async: bool,
    ) -> None:
        """Without ``is_async`` no step is launched before the one before it was read."""
        self._runner = runner
        self._scheduler = scheduler
        self._speculation = speculation
        self._blocks = blocks
        self.is_async = is_async
        self._ahead: InFlightStep | None = None
        self._began = 0.0  # when the device began the current step, by ``time.perf_counter``

    def next(self) -> StepResult | None:
        """Complete the next step; None if there is nothing to compute."""
        step, self._ahead = self._ahead, None
        if step is None or not self._live_chunks(step):
            step = self._launch_scheduled()
        if step is None:
            return None
        if self.is_async:
            self._ahead = self._launch_ahead(step)
        with self._runner.timer("sample"):
            results = step.read()
        began, self._began = self._began, time.perf_counter()
        live = [result for result in results if self._blocks.has_blocks(result.chunk.sequence)]
        return StepResult(self._live_chunks(step), live, self._began - began)

    def _live_chunks(self, step: InFlightStep) -> list[Chunk]:
        """The step's chunks whose sequences have not ended since its launch."""
        return [chunk for chunk in step.chunks if self._blocks.has_blocks(chunk.sequence)]

    def _launch_scheduled(self) -> InFlightStep | None:
        with self._runner.timer("schedule"):
            scheduled = self._scheduler.schedule()
            chunks = self._speculation.add_drafts(scheduled.chunks, num_spare=len(self._scheduler.running))
        if not chunks:
            return None
        self._began = time.perf_counter()
        self._runner.copy_blocks(scheduled.copies)
        return launch_with_oom_retry(self._runner, chunks)

    def _launch_ahead(self, step: InFlightStep) -> InFlightStep | None:
        """Launch the step after ``step``, if it can be scheduled before that is read."""
        with self._runner.timer("schedule"):
            chunks = self._schedule_ahead(step)
        if not chunks:
            return None
        try:
            return self._runner.launch(chunks, after=step)
        except torch.OutOfMemoryError as error:
            logger.warning("a step ahead finds no memory, it is made after the one before it: %s", error)
            return None

    def _schedule_ahead(self, step: InFlightStep) -> list[Chunk]:
        live = self._live_chunks(step)
        if step.token_ids is None or len(live) < len(self._scheduler.running):
            return []
        if not all(chunk.is_last and not chunk.drafts and is_draftable(chunk.sequence) for chunk in live):
            return []
        continuing = [chunk.sequence for chunk in live if self._speculation.max_drafts(chunk.sequence) > 0]
        if self._speculation.expects_drafts(continuing):
            return []
        return self._scheduler.schedule_ahead(continuing)


def launch_with_oom_retry(runner: ModelRunner, chunks: list[Chunk]) -> InFlightStep:
    """Launch a step like ``runner.launch``; split it in halves when out of memory.

    A chunk that does not fit even alone has an INSUFFICIENT_MEMORY result. The memory of the largest step
    was measured at startup, so this handles what that cannot cover: another program on the same GPU, or
    fragmentation. The chunks of a step are independent of each other.
    """
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
