"""How often a worker emits: after every engine step, or less often if many workers write to the same shard.

The cost of an emit depends mostly on the number of its frames, and a frame can contain several tokens. If
many workers share a Redis server, longer intervals thus reduce its load, but not the number of tokens. The
interval grows with the number of writers, so that each shard receives about ``EMITS_PER_S`` emits per second.
The first and the last event of a job are not delayed.
"""

from __future__ import annotations

import time

from llava_wire.worker_side.consumer import JobConsumer

__all__ = ["EMITS_PER_S", "MAX_INTERVAL_S", "MAX_UNPACED_WRITERS", "EmitPacer", "emit_interval_s"]

MAX_UNPACED_WRITERS = 16  # workers that emit after every step, however short their steps are
EMITS_PER_S = 2000  # of all workers of a shard; 16 frames each take about a third of the time of a server
MAX_INTERVAL_S = 0.25  # also the maximum delay of a token


def emit_interval_s(num_writers: int) -> float:
    """Return the minimum time between two emits of a worker, given the number of workers of the shard."""
    return 0.0 if num_writers <= MAX_UNPACED_WRITERS else min(num_writers / EMITS_PER_S, MAX_INTERVAL_S)


class EmitPacer:
    """The times at which one worker emits to one shard. ``slowdown`` multiplies the intervals."""

    def __init__(self, shard: JobConsumer, *, slowdown: float = 1.0) -> None:
        self._shard = shard
        self._slowdown = slowdown
        self._last = -float("inf")

    @property
    def delay_s(self) -> float:
        """The time until the next emit is due, at least 0."""
        interval_s = emit_interval_s(self._shard.num_writers) * self._slowdown
        return max(self._last + interval_s - time.monotonic(), 0.0)

    def begin(self) -> None:
        """Record that an emit of all outputs begins."""
        self._last = time.monotonic()
