"""Measurements in the order of their importance, as many as fit into a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "run_rows"]


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    measure: Callable[[], dict[str, Any]]
    weight: float = 1.0  # how many times as long as the others it may take


def run_rows(
    rows: Sequence[Row], *, deadline: float, clock: Callable[[], float] = time.monotonic
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What was measured by name, and why the others were dropped.

    A row is begun if as much time is left as the longest so far would take of its weight. The first that is
    not takes all after it with it: what matters less is dropped first, though it might still fit.
    """
    done: dict[str, dict[str, Any]] = {}
    longest_s = 0.0  # of weight 1
    for number, row in enumerate(rows):
        began = clock()
        left_s, needed_s = deadline - began, longest_s * row.weight
        if left_s <= needed_s:
            why = f"{left_s:.0f} s were left when {row.name} was due, which may take {needed_s:.0f} s"
            return done, {dropped.name: why for dropped in rows[number:]}
        done[row.name] = row.measure()
        longest_s = max(longest_s, (clock() - began) / row.weight)
    return done, {}
