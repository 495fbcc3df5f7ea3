"""Measurements: the units of work within a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["CheckFailed", "Measurement", "NotApplicable"]


class NotApplicable(Exception):
    """The measurement does not apply to this machine. The message says why."""


class CheckFailed(Exception):
    """A result is wrong. The message contains the error and its limit."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A named measurement.

    ``measure`` yields dictionaries of JSON-serializable values, each of which is written to the file of
    results at once. It raises CheckFailed if a result is wrong, and NotApplicable if it cannot run on this
    machine. ``needs_s`` is the typical duration on a GPU in seconds: the measurement is not run if less time
    is left. Its process is killed after ``limit_s`` seconds.
    """

    name: str
    measure: Callable[[], Iterable[dict[str, Any]]]
    needs_s: float = 2.0
    limit_s: float = 60.0
