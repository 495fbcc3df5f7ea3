"""Run as many measurements as fit into a time limit, the most important first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Measurement", "run_within"]


@dataclass(frozen=True, slots=True)
class Measurement:
    name: str
    measure: Callable[[], dict[str, Any]]
    weight: float = 1.0  # how many times as long as the others it may take


def run_within(
    measurements: Sequence[Measurement], *, deadline: float, clock: Callable[[], float] = time.monotonic
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the results by name, and for each measurement that was dropped the reason.

    A measurement is started if the time left is longer than the longest one so far took, scaled by weight.
    The first that is not started ends the run: all after it are dropped too, even if they might fit.
    """
    done: dict[str, dict[str, Any]] = {}
    longest_s = 0.0  # of weight 1
    for index, measurement in enumerate(measurements):
        began = clock()
        left_s, needed_s = deadline - began, longest_s * measurement.weight
        if left_s <= needed_s:
            reason = (
                f"{left_s:.0f} s were left when {measurement.name} was due, which may take {needed_s:.0f} s"
            )
            return done, {dropped.name: reason for dropped in measurements[index:]}
        done[measurement.name] = measurement.measure()
        longest_s = max(longest_s, (clock() - began) / measurement.weight)
    return done, {}
