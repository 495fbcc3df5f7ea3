"""The availability of the job queue, according to the calls that a controller makes all the time.

Redis can allow reads and reject writes, for example if its disk is full or a replica is missing. A server is
therefore ready only if all kinds of calls succeed. If the queue has several shards, one of them is enough,
because new requests use the shards that are available.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

from llava_wire.errors import QueueUnavailable

from llava_server.metrics import Metrics

__all__ = ["QueueCall", "QueueHealth"]

QueueCall = Literal["read", "write", "follow"]
"""Reading the heartbeats, renewing this controller's lease, and reading the events of its jobs."""

logger = logging.getLogger(__name__)

_STALE_S = 5.0  # the queue is considered unavailable if the last success of a call is older than this
# Workers send a heartbeat every second, but they may wait up to a second longer after an outage. Until they
# have done so, a controller that has just started does not know all models.
_SETTLE_S = 4.0
_CHECKED: tuple[QueueCall, ...] = ("read", "write")  # must succeed once before the queue is available


class QueueHealth:
    """Whether each kind of call succeeds on each shard of the queue."""

    def __init__(self, metrics: Metrics, num_shards: int = 1) -> None:
        self._metrics = metrics
        names = ["the job queue"] if num_shards == 1 else [f"queue shard {i}" for i in range(num_shards)]
        self._shards = [_ShardHealth(name) for name in names]

    def report(self, call: QueueCall, error: QueueUnavailable | None, *, shard: int | None = None) -> None:
        """Record the result of a call to one shard, or to all shards if ``shard`` is None."""
        for each in self._shards if shard is None else [self._shards[shard]]:
            each.report(call, error)
        self._metrics.queue_up.set(self.problem() is None)
        self._metrics.unavailable_shards.set(sum(each.problem() is not None for each in self._shards))

    def is_available(self, call: QueueCall) -> bool:
        """Return whether the last call of this kind succeeded and is recent, on any shard."""
        return any(shard.is_available(call) for shard in self._shards)

    @property
    def is_settled(self) -> bool:
        """Whether the queue is available, and has been for long enough that all workers are known."""
        return any(shard.is_settled for shard in self._shards)

    def problem(self, *, has_details: bool = False) -> str | None:
        """Return the reason why the queue is unavailable, or None if at least one shard is available.

        The details are the error text from Redis, which can contain addresses and user names. Without
        details, the reason contains only the kind of error, such as "NOREPLICAS".
        """
        problems = [shard.problem(has_details=has_details) for shard in self._shards]
        return problems[0] if all(problems) else None

    def shard_problems(self, *, has_details: bool = False) -> list[str]:
        """Return the reason for each unavailable shard of a queue with several shards, as in ``problem``."""
        if len(self._shards) == 1:
            return []
        problems = [shard.problem(has_details=has_details) for shard in self._shards]
        return [f"Shard {index}: {text}" for index, text in enumerate(problems) if text]


@dataclass
class _CallState:
    error: QueueUnavailable | None = None
    succeeded_at: float | None = None  # time.monotonic()


class _ShardHealth:
    """Whether each kind of call succeeds on one shard. Logs the beginning and the end of each outage."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: dict[QueueCall, _CallState] = {call: _CallState() for call in _CHECKED}
        self._outage_began: float | None = None  # time.monotonic(), like the next attribute
        self._recovered_at = float("-inf")
        self._logged_kinds: set[str] = set()  # kinds of errors logged in this outage

    def report(self, call: QueueCall, error: QueueUnavailable | None) -> None:
        """Record the result of a call."""
        state = self._calls.setdefault(call, _CallState())
        state.error = error
        if error is None:
            state.succeeded_at = time.monotonic()
            self._check_recovery()
            return
        self._outage_began = self._outage_began or time.monotonic()
        if error.kind not in self._logged_kinds:
            self._logged_kinds.add(error.kind)
            logger.warning("%s", error)

    def is_available(self, call: QueueCall) -> bool:
        state = self._calls.get(call, _CallState())
        return state.error is None and _age_s(state) <= _STALE_S

    @property
    def is_settled(self) -> bool:
        return self.problem() is None and time.monotonic() - self._recovered_at > _SETTLE_S

    def problem(self, *, has_details: bool = False) -> str | None:
        for state in self._calls.values():
            if state.error is not None:
                return (
                    str(state.error) if has_details else f"The job queue is unavailable ({state.error.kind})."
                )
        if any(state.succeeded_at is None for state in self._calls.values()):
            return "The connection to the job queue has not been checked yet."
        age_s = max(_age_s(state) for state in self._calls.values())
        return f"The job queue has not responded for {age_s:.0f} seconds." if age_s > _STALE_S else None

    def _check_recovery(self) -> None:
        if self.problem() is None and self._outage_began is not None:
            self._recovered_at = time.monotonic()
            outage_s = self._recovered_at - self._outage_began
            logger.info("%s is available again after %.1f s", self._name, outage_s)
            self._outage_began = None
            self._logged_kinds.clear()


def _age_s(state: _CallState) -> float:
    return float("inf") if state.succeeded_at is None else time.monotonic() - state.succeeded_at
