"""Measures the host time spent in each phase of a step.

A GPU runs asynchronously, and the timer does not synchronize with it at the end of a phase. The time spent
waiting for the GPU is therefore attributed to "sample", the phase that waits for the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

__all__ = ["PHASES", "OnPhase", "Phase", "StepTimer"]

Phase: TypeAlias = Literal["schedule", "prepare", "encode", "forward", "sample", "postprocess"]
PHASES: tuple[Phase, ...] = ("schedule", "prepare", "encode", "forward", "sample", "postprocess")

OnPhase: TypeAlias = Callable[[Phase, float, float], None]  # phase, start and end (``time.perf_counter``)


class StepTimer:
    """Accumulates the time of each phase in seconds: ``with timer("forward"): ...``.

    Phases must not be nested.
    """

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self.on_phase: OnPhase | None = None  # called at the end of every phase

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.seconds[phase] += ended - began
            if self.on_phase is not None:
                self.on_phase(phase, began, ended)
