"""Timeouts of tests, scaled to how fast this machine runs right now.

A timeout in a test bounds how long a failing test waits; it never decides whether a test passes on a slow or
busy machine. Each one is written for an idle machine and passed through ``scaled``. The speed is the wall
time of a fixed computation in a new process: a machine whose cores are taken by other programs counts as a
slow one.
"""

from __future__ import annotations

import subprocess
import sys
import time

_COMPUTATION = "for _ in range(3_000_000): pass"
_REFERENCE_S = 0.1  # one process start and the computation, on an idle core of 2026
_MAX_FACTOR = 10.0
_MAX_AGE_S = 30.0  # older measurements are repeated before the next test


class MachineSpeed:
    """The latest measurement of the machine's speed."""

    def __init__(self) -> None:
        self._factor = 1.0
        self._measured_at_s: float | None = None

    @property
    def factor(self) -> float:
        """How many times longer than on the reference machine everything takes, between 1 and 10."""
        if self._measured_at_s is None:
            self.measure()
        return self._factor

    def refresh(self) -> None:
        """Measure again if the latest measurement is old; a busy machine may have become busier."""
        if self._measured_at_s is None or time.monotonic() - self._measured_at_s > _MAX_AGE_S:
            self.measure()

    def measure(self) -> None:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", _COMPUTATION], check=True)
        elapsed_s = time.perf_counter() - start
        self._factor = min(max(elapsed_s / _REFERENCE_S, 1.0), _MAX_FACTOR)
        self._measured_at_s = time.monotonic()


SPEED = MachineSpeed()


def scaled(seconds: float) -> float:
    """Return a timeout for this machine, from one that is generous on an idle one."""
    return seconds * SPEED.factor
