"""Followers of a job: requests that read the output of a job whose stream belongs to another connection.

They are repetitions of a request with the same ``Idempotency-Key``. All followers of a job in this process
share one source of events: the stream of this controller or, if another controller streams the job, a task
that reads the job's log. The number of Redis commands therefore does not depend on the number of followers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import Event

from llava_server.errors import ApiError
from llava_server.generation.output_queue import OutputQueue

__all__ = ["MAX_READERS", "Followers", "log_interval_s", "read_log"]

MAX_READERS = 8  # maximum number of connections that read the same job, for each controller
_MIN_INTERVAL_S = 0.1  # minimum interval between two reads of a log
# A longer interval would let the job's controller cancel the job as unread.
_MAX_INTERVAL_S = 1.0
_MAX_READS_PER_S = 50  # maximum number of reads of all logs per second, unless the intervals become too long
# maximum number of reads that find no log (the other connection may still be submitting the job)
_MAX_MISSES = 20


class Followers:
    """The followers of one job in this process. Each of them receives all events, starting with the first.

    ``reader`` is the task that reads the job's log, or None if this controller streams the job.
    """

    def __init__(self, job_id: str, tenant: str, events: Iterable[Event] = ()) -> None:
        self.job_id = job_id
        self.tenant = tenant
        self.queues: list[OutputQueue] = []
        self.reader: asyncio.Task[None] | None = None
        self._events = list(events)

    @property
    def num_events(self) -> int:
        """The number of events that each follower has received."""
        return len(self._events)

    @property
    def num_tokens(self) -> int:
        """The number of tokens in these events."""
        return self._events[-1].next_offset if self._events else 0

    @property
    def is_finished(self) -> bool:
        """Whether the followers have received the last event of the job."""
        return bool(self._events) and self._events[-1].final is not None

    @property
    def is_local(self) -> bool:
        """Whether the followers receive the events of this controller's stream."""
        return self.reader is None

    def add(self, output: OutputQueue) -> None:
        for event in self._events:
            output.put(event)
        self.queues.append(output)

    def put(self, event: Event) -> None:
        self._events.append(event)
        for output in self.queues:
            output.put(event)

    def fail(self, error: ApiError) -> None:
        """End all responses that are unfinished."""
        for output in self.queues:
            if not output.is_finished:
                output.put(error)

    def join_stream(self, events: Iterable[Event]) -> None:
        """Stop reading the log, because this controller now streams the job.

        ``events`` are all events so far. The caller must put all further events.
        """
        if self.reader is not None:
            self.reader.cancel()
            self.reader = None
        for event in list(events)[self.num_events :]:
            self.put(event)


async def read_log(producer: ShardedProducer, followers: Followers, interval_s: Callable[[], float]) -> bool:
    """Copy new events from the job's log to its followers until the job ends. Return False.

    If no controller streams the job anymore, stop and return True. The caller can then take over the stream.
    Reading the log also keeps the job alive after the other connection has ended (see
    ``JobProducer.cancel_unread``).
    """
    num_misses = 0
    while not followers.is_finished:
        try:
            snapshot = await producer.shard(followers.job_id).snapshot(
                followers.job_id,
                tenant=followers.tenant,
                num_events=followers.num_events,
                offset=followers.num_tokens,
            )
        except QueueUnavailable:
            await asyncio.sleep(interval_s())
            continue
        num_misses += snapshot is None
        if (snapshot and snapshot.state == "cancelled") or num_misses > _MAX_MISSES:
            followers.fail(
                ApiError(
                    "answer_cancelled", "The client that first sent this request has cancelled it. Retry."
                )
            )
            return False
        for event in snapshot.events if snapshot else ():
            followers.put(event)
        if snapshot and snapshot.state == "orphaned":
            return True
        await asyncio.sleep(interval_s())
    return False


def log_interval_s(num_logs: int) -> float:
    """Return the interval between two reads of a log, in seconds, if this process reads ``num_logs`` logs."""
    return min(max(num_logs / _MAX_READS_PER_S, _MIN_INTERVAL_S), _MAX_INTERVAL_S)
