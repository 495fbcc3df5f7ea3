"""What a controller can query about the queue: statistics, a job's position, a job's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_wire.messages.event import Event
from llava_wire.messages.job import Job

__all__ = ["JobSnapshot", "QueuePosition", "QueueStats"]


@dataclass(frozen=True)
class QueueStats:
    """Counts of the whole system; only ``num_live`` is of this controller. ``num_waiting`` is per model."""

    num_waiting: Mapping[str, int]
    num_running: int
    num_workers: int
    num_controllers: int
    num_dead_letters: int
    num_live: int


@dataclass(frozen=True)
class QueuePosition:
    """A job's position at its submission: the number of jobs of its model that were waiting, and how long
    these should take at the rate of the last minute; None if no job was served in it."""

    num_ahead: int
    wait_s: float | None

    @classmethod
    def from_reply(cls, num_ahead: int, wait_ms: int) -> QueuePosition:
        """Parse the reply of the script ``submit``, where 0 ms for jobs ahead means no estimate."""
        return cls(num_ahead, None if num_ahead and not wait_ms else wait_ms / 1000)


@dataclass(frozen=True)
class JobSnapshot:
    """The state of a job (queued, parked, running, done, cancelled, orphaned) and its next events.

    ``outline`` is the job without its messages; ``created_at`` is in Unix seconds, by Redis's clock.
    """

    state: str
    outline: Job
    events: list[Event]
    created_at: float
