"""Results of queue queries: statistics, and the position and state of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_wire.messages.event import Event
from llava_wire.messages.job import Job

__all__ = ["JobSnapshot", "QueuePosition", "QueueStats"]


@dataclass(frozen=True)
class QueueStats:
    """Counts for the whole system. ``num_waiting`` is per model; ``num_live`` is for this controller only."""

    num_waiting: Mapping[str, int]
    num_running: int
    num_workers: int
    num_controllers: int
    num_dead_letters: int
    num_live: int


@dataclass(frozen=True)
class QueuePosition:
    """The queue position of a job at submission. ``num_ahead`` is the number of jobs waiting for the same
    model. ``wait_s`` is the estimated time to serve them at the rate of the last minute; None if no job was
    served in that minute."""

    num_ahead: int
    wait_s: float | None

    @classmethod
    def from_reply(cls, num_ahead: int, wait_ms: int) -> QueuePosition:
        """Parse the reply from ``submit``. If there are jobs ahead, 0 ms means that there is no estimate."""
        return cls(num_ahead, None if num_ahead and not wait_ms else wait_ms / 1000)


@dataclass(frozen=True)
class JobSnapshot:
    """The state of a job (queued, parked, running, done, cancelled or orphaned) and its next events.

    ``outline`` is the job without its messages. ``created_at`` is in Unix seconds, according to the Redis
    clock.
    """

    state: str
    outline: Job
    events: list[Event]
    created_at: float
