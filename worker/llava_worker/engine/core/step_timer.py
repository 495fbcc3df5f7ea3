"""The time of a step by phase, by the host's clock.

A GPU computes asynchronously. Its remaining work appears in the phase that waits for its result, which is
"sample": no phase synchronizes only in order to be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

__all__ = ["PHASES", "OnPhase", "Phase", "StepTimer"]

Phase: TypeAlias = Literal["schedule", "prepare", "encode", "forward", "sample", "postprocess"]
PHASES: tuple[Phase, ...] = ("schedule", "prepare", "encode", "forward", "sample", "postprocess")

OnPhase: TypeAlias = Callable[[Phase, float, float], None]  # begin and end, s of ``time.perf_counter``


class StepTimer:
    """``with timer("forward"): ...`` adds to that phase. Phases follow each other and do not nest."""

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
