"""Where the time of a step goes, by phase, as the host's clock sees it.

A GPU works on after the host has told it what to do. What it is still busy with shows in the phase that waits
for its answer, which is "sample": no phase waits only in order to be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

__all__ = ["PHASES", "OnPhase", "Phase", "StepClock"]

Phase: TypeAlias = Literal["schedule", "prepare", "encode", "forward", "sample", "postprocess"]
PHASES: tuple[Phase, ...] = ("schedule", "prepare", "encode", "forward", "sample", "postprocess")

OnPhase: TypeAlias = Callable[[Phase, float, float], None]  # began and ended, s of ``time.perf_counter``


class StepClock:
    """``with clock("forward"): ...`` adds to that phase. Phases follow each other, none holds another."""

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self.on_phase: OnPhase | None = None  # is told of every phase that ends

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
