"""Writes a timeline of engine steps for Perfetto. Used only if ``--trace-steps`` is set."""

from __future__ import annotations

import os
import time
from pathlib import Path

from llava_worker.engine import EngineInterface, EngineStats, Sequence, StepOutput
from llava_worker.engine.core.step_timer import StepTimer
from llava_worker.engine.stats.step_trace import StepTrace, TraceFile

__all__ = ["TracedEngine", "open_trace"]


def open_trace(path: Path, *, process: str) -> StepTrace:
    """Open the trace file. ``{pid}`` in the path is replaced by the process ID. Raises OSError."""
    path = Path(str(path).replace("{pid}", str(os.getpid())))
    return StepTrace(TraceFile(path), process=process)


class TracedEngine:
    """A wrapper around an engine that records its steps.

    If given, ``timer`` reports the phases of each step.
    """

    def __init__(self, engine: EngineInterface, trace: StepTrace, timer: StepTimer | None = None) -> None:
        self._engine = engine
        self._trace = trace
        if timer is not None:
            timer.on_phase = trace.phase

    @property
    def max_sequences(self) -> int:
        return self._engine.max_sequences

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    @property
    def num_sequences(self) -> int:
        return self._engine.num_sequences

    def bind_thread(self) -> None:
        self._engine.bind_thread()

    def add(self, sequence: Sequence) -> None:
        """Add a sequence. Raises SequenceRejected."""
        self._engine.add(sequence)
        self._trace.added(sequence, time.perf_counter())

    def abort(self, seq_id: str) -> None:
        self._engine.abort(seq_id)
        self._trace.aborted(seq_id, time.perf_counter())

    def step(self) -> list[StepOutput]:
        """Run a step and record it, even if it raises an exception."""
        started_at = time.perf_counter()
        outputs: list[StepOutput] = []
        try:
            outputs = self._engine.step()
        finally:
            self._trace.stepped(started_at, time.perf_counter(), outputs, self._engine.stats())
        return outputs

    def idle(self) -> bool:
        return self._engine.idle()

    def stats(self) -> EngineStats:
        return self._engine.stats()
