"""The interface between the worker and an engine."""

from __future__ import annotations

from typing import Protocol

from llava_worker.engine.core.outputs import EngineStats, StepOutput
from llava_worker.engine.core.sequence import Sequence

__all__ = ["EngineInterface"]


class EngineInterface(Protocol):
    """The interface of all engines. Only one thread may use an engine. It must call `bind_thread` first."""

    @property
    def max_sequences(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def num_sequences(self) -> int:
        """The number of waiting and running sequences."""
        ...

    def bind_thread(self) -> None:
        """Prepare the calling thread for running the engine, for example by selecting the GPU."""
        ...

    def add(self, sequence: Sequence) -> None:
        """Add a sequence. Raises SequenceRejected if the engine cannot serve it."""
        ...

    def abort(self, seq_id: str) -> None: ...
    def step(self) -> list[StepOutput]: ...
    def idle(self) -> bool:
        """Spend a few milliseconds preparing for later steps.

        Return False if nothing is left to prepare. The worker calls this repeatedly while the engine has no
        sequences.
        """
        ...

    def stats(self) -> EngineStats: ...
