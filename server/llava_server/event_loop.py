"""Measurement of stalls of the event loop.

While a callback computes, or a thread holds the interpreter's lock, the event loop serves no requests. A task
that sleeps for short intervals measures by how much it wakes up late.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple

from llava_server.metrics import Metrics

__all__ = ["RecentMaximum", "measure_stalls"]

_INTERVAL_S = 0.05  # stalls can be underestimated by up to this time
_WINDOW_S = 60.0


class _Sample(NamedTuple):
    value: float
    time_s: float


class RecentMaximum:
    """The maximum of the values that were added within a time window."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        # The values decrease: a value that a later one exceeds is dropped.
        self._candidates: deque[_Sample] = deque()

    def add(self, value: float, now_s: float) -> float:
        """Add a value at a time that never decreases. Return the maximum of the window that ends then."""
        candidates = self._candidates
        while candidates and candidates[-1].value <= value:
            candidates.pop()
        candidates.append(_Sample(value, now_s))
        while candidates[0].time_s < now_s - self._window_s:
            candidates.popleft()
        return candidates[0].value


async def measure_stalls(metrics: Metrics) -> None:
    """Export the longest stall of the running event loop in the last minute, until cancelled.

    The CPU time is that of all threads of this process. It excludes the time in which other processes used
    the CPU, so it is independent of the load of the machine.
    """
    longest_s, longest_cpu_s = RecentMaximum(_WINDOW_S), RecentMaximum(_WINDOW_S)
    while True:
        begin_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(_INTERVAL_S)
        now_s = time.monotonic()
        stall_s = max(0.0, now_s - begin_s - _INTERVAL_S)
        stall_cpu_s = min(stall_s, time.process_time() - cpu_s)
        metrics.event_loop_stall.set(longest_s.add(stall_s, now_s))
        metrics.event_loop_stall_cpu.set(longest_cpu_s.add(stall_cpu_s, now_s))
