"""Results of queue queries: statistics, and the position and state of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from llava_wire.messages.event import Event
from llava_wire.messages.job import Job

__all__ = ["CancelReply", "JobSnapshot", "QueuePosition", "QueueStats"]


class CancelReply(IntEnum):
    """The reply of the script ``cancel``."""

    NOT_LIVE = 0  # the job has ended, does not exist, or belongs to another controller
    CANCELLED = 1
    OTHER_NONCE = 2  # a later submission or takeover owns the job
    HAS_READER = 3  # another connection has read the job recently


@dataclass(frozen=True)
class QueueStats:
    """Counts for the whole system, except for ``num_live``, which counts only the jobs of this controller.

    ``num_waiting`` (jobs), ``cost_waiting`` (estimated tokens in these jobs) and ``num_running`` (jobs) are
    keyed by model. ``num_running`` contains only models with a live worker.
    """

    num_waiting: Mapping[str, int]
    cost_waiting: Mapping[str, float]
    num_running: Mapping[str, int]
    num_workers: int
    num_controllers: int
    num_dead_letters: int
    num_live: int


@dataclass(frozen=True)
class QueuePosition:
    """The position of a job in the queue when it was submitted.

    ``num_ahead`` is the number of jobs that were already waiting for the same model. ``wait_s`` is the
    estimated time to serve them, based on the service rate of the last minute. If no job was served in that
    minute, no estimate is available, and ``wait_s`` is None.
    """

    num_ahead: int
    wait_s: float | None

    @classmethod
    def from_reply(cls, num_ahead: int, wait_ms: int) -> QueuePosition:
        """Convert a reply from ``submit``. If other jobs are ahead, 0 ms means that there is no estimate."""
        return cls(num_ahead, None if num_ahead and not wait_ms else wait_ms / 1000)


@dataclass(frozen=True)
class JobSnapshot:
    """The state of a job (queued, parked, running, done, cancelled or orphaned), and the requested events.

    ``outline`` is the job without its prompt. ``created_at`` is in Unix seconds, according to the Redis
    clock.
    """

    state: str
    outline: Job
    events: list[Event]
    created_at: float
    model_digest: str  # digest of the model that generates the output; empty if unknown
