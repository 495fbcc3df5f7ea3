"""Steps one behind the other: the host plans and launches step k+1 before it reads the tokens of step k, so
that the device has work while the host appends, finishes, emits and plans.

                launch k      launch k+1   read k   launch k+2   read k+1
    host        |schedule|    |schedule|   |wait...|postprocess k|emit|schedule|   |wait...
    device                |step k...............|step k+1...............|step k+2....

A step is launched ahead only where it is what would be planned after the one before it: all who run decode,
what their tokens are does not matter for the plan, and nobody else can be taken on. Then the tokens go from
step to step on the device. In every other case nothing is ahead, and each step waits for the one before it.

Who turns out to have ended has one row too many in the step ahead. Its token is dropped, it writes behind
what others may share, and its blocks can be given away at once: a device makes its steps in their order, so
who gets them writes later.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.in_flight_step import Flight, StepResult
from llava_worker.engine.core.scheduler import Chunk, Scheduler
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.oom_retry import launch_in_memory
from llava_worker.engine.speculation.speculative_decoding import Speculation, is_draftable

__all__ = ["Landing", "Pipeline"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Landing:
    """A step that is over, without the sequences that ended while it was on its way.

    ``seconds`` are those that it took; where it was launched ahead, since the step before it was over.
    """

    chunks: list[Chunk]
    results: list[StepResult]
    seconds: float


class Pipeline:
    """At most two steps are on their way, and that only while `next` runs; between its calls at most one."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        speculation: Speculation,
        blocks: BlockManager,
        *,
        is_overlapping: bool,
    ) -> None:
        """Without ``is_overlapping`` no step is launched before the one before it was read."""
        self._runner = runner
        self._scheduler = scheduler
        self._speculation = speculation
        self._blocks = blocks
        self.is_overlapping = is_overlapping
        self._ahead: Flight | None = None
        self._began = 0.0  # when the device came to the step that is due, by ``time.perf_counter``

    def next(self) -> Landing | None:
        """The step that is due, once it is over; None if there is nothing to compute."""
        flight, self._ahead = self._ahead, None
        if flight is None or not self._live(flight):
            flight = self._launch_scheduled()
        if flight is None:
            return None
        if self.is_overlapping:
            self._ahead = self._launch_ahead(flight)
        with self._runner.clock("sample"):
            results = flight.read()
        began, self._began = self._began, time.perf_counter()
        live = [result for result in results if self._blocks.is_holding(result.chunk.sequence)]
        return Landing(self._live(flight), live, self._began - began)

    def _live(self, flight: Flight) -> list[Chunk]:
        """Those of the step's chunks whose sequences have not ended meanwhile."""
        return [chunk for chunk in flight.chunks if self._blocks.is_holding(chunk.sequence)]

    def _launch_scheduled(self) -> Flight | None:
        with self._runner.clock("schedule"):
            plan = self._scheduler.schedule()
            chunks = self._speculation.extend(plan.chunks, num_spare=len(self._scheduler.running))
        if not chunks:
            return None
        self._began = time.perf_counter()
        self._runner.copy(plan.copies)
        return launch_in_memory(self._runner, chunks)

    def _launch_ahead(self, flight: Flight) -> Flight | None:
        """The step after ``flight``, where it can be told before that is read."""
        with self._runner.clock("schedule"):
            chunks = self._foresee(flight)
        if not chunks:
            return None
        try:
            return self._runner.launch(chunks, after=flight)
        except torch.OutOfMemoryError as error:
            logger.warning("a step ahead finds no memory, it is made after the one before it: %s", error)
            return None

    def _foresee(self, flight: Flight) -> list[Chunk]:
        live = self._live(flight)
        if flight.token_ids is None or len(live) < len(self._scheduler.running):
            return []
        if not all(chunk.is_last and not chunk.drafts and is_draftable(chunk.sequence) for chunk in live):
            return []
        going_on = [chunk.sequence for chunk in live if self._speculation.room(chunk.sequence) > 0]
        if self._speculation.has_guess(going_on):
            return []
        return self._scheduler.schedule_ahead(going_on)
