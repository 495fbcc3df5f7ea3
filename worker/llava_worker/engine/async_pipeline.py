"""Async scheduling: the host schedules and launches step k+1 before it reads the tokens sampled in step k.

The device computes while the host postprocesses, emits outputs and schedules.

                launch k      launch k+1   read k   launch k+2   read k+1
    host        |schedule|    |schedule|   |wait...|postprocess k|emit|schedule|   |wait...
    device                |step k...............|step k+1...............|step k+2....

A step is launched early only if its schedule does not depend on the tokens of the previous step: all running
sequences are decoding, and no waiting sequence can be admitted. In this case, the sampled tokens stay on the
device, where the next step reads them. Otherwise, a step is launched only after the previous one has been
read.

If a sequence finishes in step k, step k+1 still computes one row for it, and the token sampled from that row
is dropped. The keys and values of the row do not overwrite any shared tokens, because they are written to a
later slot. The blocks of the finished sequence can be reused immediately: the device executes steps in order,
so the next sequence that uses these blocks writes to them after step k+1.
"""

from __future__ import annotations

import logging
import time

import torch

from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.model_runner_output import ChunkResult, StepResult
from llava_worker.engine.core.scheduler import Chunk, Scheduler
from llava_worker.engine.core.sequence_outputs import out_of_memory_error
from llava_worker.engine.model_runner import InFlightStep, ModelRunner, completed
from llava_worker.engine.speculation.speculative_decoding import SpeculativeDecoding, is_draftable

__all__ = ["AsyncPipeline", "launch_with_oom_retry"]

logger = logging.getLogger(__name__)


class AsyncPipeline:
    """Schedules, launches and reads steps.

    At most two steps are in flight during `next`, and at most one between calls.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        speculation: SpeculativeDecoding,
        blocks: BlockManager,
        *,
        is_async: bool,
    ) -> None:
        """If ``is_async`` is false, each step is launched only after the previous one has been read."""
        self._runner = runner
        self._scheduler = scheduler
        self._speculation = speculation
        self._blocks = blocks
        self.is_async = is_async
        self._ahead: InFlightStep | None = None
        self._began = 0.0  # start time of the current step on the device (``time.perf_counter``)

    def next(self) -> StepResult | None:
        """Complete the next step and return its result. Return None if there is nothing to compute."""
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
        with_blocks = self._blocks.sequences
        live = [result for result in results if result.chunk.sequence in with_blocks]
        return StepResult(self._live_chunks(step), live, self._began - began)

    def _live_chunks(self, step: InFlightStep) -> list[Chunk]:
        """Return the chunks of the step, except those of sequences that have finished in the meantime."""
        with_blocks = self._blocks.sequences
        return [chunk for chunk in step.chunks if chunk.sequence in with_blocks]

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
        """Launch the next step if it can be scheduled before ``step`` is read."""
        with self._runner.timer("schedule"):
            chunks = self._schedule_ahead(step)
        if not chunks:
            return None
        try:
            return self._runner.launch(chunks, after=step)
        except torch.OutOfMemoryError as error:
            logger.warning(
                "out of memory while launching the next step early; it will be launched later: %s", error
            )
            return None

    def _schedule_ahead(self, step: InFlightStep) -> list[Chunk]:
        live = self._live_chunks(step)
        if step.token_ids is None or len(live) < len(self._scheduler.running):
            return []
        continuing = []
        for chunk in live:
            if not chunk.is_last or chunk.drafts or not is_draftable(chunk.sequence):
                return []
            if self._speculation.max_drafts(chunk.sequence) > 0:
                continuing.append(chunk.sequence)
        if self._speculation.expects_drafts(continuing):
            return []
        return self._scheduler.schedule_ahead(continuing)


def launch_with_oom_retry(runner: ModelRunner, chunks: list[Chunk]) -> InFlightStep:
    """Launch a step with ``runner.launch``. If the step runs out of memory, launch its two halves separately.

    A chunk that does not fit in memory on its own gets an INSUFFICIENT_MEMORY result. The memory required by
    the largest step is measured at startup, so a step runs out of memory only if another program uses the
    same GPU or if memory is fragmented. A step can be split because its chunks do not depend on each other.
    """
    try:
        return runner.launch(chunks)
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Memory is released outside the except block, because inside it, the traceback would keep the failed
    # step's tensors alive.
    runner.release_memory()
    if len(chunks) == 1:
        seq_id = chunks[0].sequence.seq_id
        logger.error(
            "seq_id=%s: out of memory in a step that contains only this sequence: %s", seq_id, reason
        )
        return completed([], [ChunkResult(chunks[0], [], out_of_memory_error())])
    logger.warning("out of memory in a step of %d sequences; retrying in two halves: %s", len(chunks), reason)
    half = len(chunks) // 2
    computed, results = [], []
    for part in (chunks[:half], chunks[half:]):
        step = launch_with_oom_retry(runner, part)
        results += step.read()
        computed += step.chunks
    return completed(computed, results)
