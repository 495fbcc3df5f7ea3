"""The interface between the worker and an engine."""

from __future__ import annotations

from typing import Protocol

from llava_worker.engine.core.outputs import EngineStats, StepOutput
from llava_worker.engine.core.sequence import Sequence

__all__ = ["EngineInterface"]


class EngineInterface(Protocol):
    """An engine, used by one thread only."""

    @property
    def max_sequences(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def num_sequences(self) -> int:
        """Waiting and running sequences."""
        ...

    def add(self, sequence: Sequence) -> None:
        """Raises SequenceRejected."""
        ...

    def abort(self, seq_id: str) -> None: ...
    def step(self) -> list[StepOutput]: ...
    def idle(self) -> bool:
        """Prepare for later steps for some milliseconds; called without sequences until it returns False."""
        ...

    def stats(self) -> EngineStats: ...
