"""What the queue tells about itself when a controller asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_wire.messages.event import Event
from llava_wire.messages.job import Job

__all__ = ["JobSnapshot", "QueuePosition", "QueueStats"]


@dataclass(frozen=True)
class QueueStats:
    """A moment of the whole system, but ``num_live`` is of this controller. ``num_waiting`` is by model."""

    num_waiting: Mapping[str, int]
    num_running: int
    num_workers: int
    num_controllers: int
    num_dead_letters: int
    num_live: int


@dataclass(frozen=True)
class QueuePosition:
    """Where a job stood when it came: how many jobs of its model waited, and how long these should take at
    the last minute's rate; None where nothing was done in it."""

    num_ahead: int
    wait_s: float | None

    @classmethod
    def read(cls, num_ahead: int, wait_ms: int) -> QueuePosition:
        """As ``submit`` answers."""
        return cls(num_ahead, None if num_ahead and not wait_ms else wait_ms / 1000)


@dataclass(frozen=True)
class JobSnapshot:
    """A look at a job: its state (queued, parked, running, done, cancelled, orphaned), and its next events.

    ``outline`` is the job without its messages; ``created_at`` is in s since the epoch, by Redis's clock.
    """

    state: str
    outline: Job
    events: list[Event]
    created_at: float
