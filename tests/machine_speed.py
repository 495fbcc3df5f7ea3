"""Test timeouts, scaled to the current speed of the machine.

A timeout limits how long a failing test waits. A slow or busy machine must not make a test fail. Timeouts are
specified for an idle machine and passed through ``scaled``. The speed is measured as the wall time of a fixed
computation in a new process, so a machine that is busy with other programs counts as slow.
"""

from __future__ import annotations

import subprocess
import sys
import time

_COMPUTATION = "for _ in range(3_000_000): pass"
_REFERENCE_S = 0.1  # time to start a process and run the computation on an idle core, measured in 2026
_MAX_FACTOR = 10.0
_MAX_AGE_S = 30.0  # older measurements are repeated before the next test


class MachineSpeed:
    """The most recent measurement of the machine's speed."""

    def __init__(self) -> None:
        self._factor = 1.0
        self._measured_at_s: float | None = None

    @property
    def factor(self) -> float:
        """The slowdown relative to the reference machine, clamped to the range from 1 to 10."""
        if self._measured_at_s is None:
            self.measure()
        return self._factor

    def refresh(self) -> None:
        """Repeat the measurement if it is older than 30 seconds, because the load may have changed."""
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
    """Scale a generous timeout for an idle machine to this machine's current speed."""
    return seconds * SPEED.factor
