"""Run measurements in order of importance until the deadline."""

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
    weight: float = 1.0  # expected duration relative to the other measurements


def run_within(
    measurements: Sequence[Measurement], *, deadline: float, clock: Callable[[], float] = time.monotonic
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Run the measurements. Return the results and the reasons for skipped measurements, both keyed by name.

    A measurement is skipped if the remaining time does not exceed the longest duration so far, scaled by the
    measurement's weight. All later measurements are then skipped as well, even if one of them might fit.
    """
    done: dict[str, dict[str, Any]] = {}
    longest_s = 0.0  # for a measurement with weight 1
    for index, measurement in enumerate(measurements):
        began = clock()
        left_s, needed_s = deadline - began, longest_s * measurement.weight
        if left_s <= needed_s:
            reason = f"only {left_s:.0f} s were left for {measurement.name}, which may take {needed_s:.0f} s"
            return done, {dropped.name: reason for dropped in measurements[index:]}
        done[measurement.name] = measurement.measure()
        longest_s = max(longest_s, (clock() - began) / measurement.weight)
    return done, {}
