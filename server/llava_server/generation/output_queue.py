"""A queue between the controller and the coroutine that writes a job's output to a client."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from llava_wire.controller_side.query_results import QueuePosition
from llava_wire.messages.event import Event

from llava_server.errors import ApiError

__all__ = ["OutputQueue", "events_by_job"]

_DEADLINE_SLACK_S = 5.0  # extra time, so that the deadline is normally enforced through Redis first


class OutputQueue:
    """An ordered queue of one job's events. The controller adds events, and a single coroutine reads them.

    ``event_arrived`` is set whenever an event is added. Queues that are read together share one
    ``event_arrived``. If the client disconnects, a resumable job continues until the grace period ends, and a
    background job continues until it finishes.

    ``receiver`` is called for an event that arrives alone while the queue is empty, unless it is the last
    one. If the receiver returns True, it has processed the event, which is then not added to the queue.
    """

    def __init__(
        self,
        job_id: str,
        tenant: str,
        *,
        timeout_s: float,
        queue_timeout_s: float,
        is_resumable: bool,
        is_background: bool = False,
        close: Callable[[OutputQueue], Awaitable[None]],
        event_arrived: asyncio.Event | None = None,
    ) -> None:
        self.job_id = job_id
        self.tenant = tenant
        self.is_resumable = is_resumable
        self.is_background = is_background
        self.has_begun = False  # whether a worker has started the job
        self.is_finished = False  # whether the last event has been added (it may not have been read yet)
        self.receiver: Callable[[Event], bool] | None = None
        self.queue_position: QueuePosition | None = None  # at submission
        self.num_charged_tokens = 0.0  # estimate charged against the tenant's rate limit at submission
        self.num_used_tokens = 0  # number of prompt and output tokens; set when the last event is added
        self.first_event_deadline = time.monotonic() + queue_timeout_s
        self.last_event_deadline = time.monotonic() + timeout_s + _DEADLINE_SLACK_S
        self._timeout_s = timeout_s
        self._queue_timeout_s = queue_timeout_s
        self._close = close
        self._events: deque[Event | ApiError] = deque()
        self._event_arrived = event_arrived or asyncio.Event()

    def put(self, event: Event | ApiError) -> None:
        self.has_begun = True
        if isinstance(event, Event):
            if event.final is not None:
                self.is_finished = True
                self.num_used_tokens = event.final.num_prompt_tokens + event.next_offset
            elif self.receiver is not None and not self._events and self.receiver(event):
                return
        self._events.append(event)
        self._event_arrived.set()

    def put_all(self, events: Sequence[Event]) -> None:
        """Add events that have arrived at the same time, so that they can be sent together."""
        if len(events) > 1:
            self._events.append(events[0])  # not passed to the receiver
            events = events[1:]
        for event in events:
            self.put(event)

    async def get(self) -> Event:
        """Wait for the next event. Raises ApiError if the stream cannot continue."""
        while (event := self.get_nowait()) is None:
            self._event_arrived.clear()
            await self._event_arrived.wait()
        return event

    def get_nowait(self) -> Event | None:
        """Return the next event, or None if the queue is empty. Raises the same errors as ``get``."""
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, ApiError):
            raise event
        return event

    def timeout_error(self, now: float) -> ApiError | None:
        """Return the error to report if a deadline has passed at ``now``, otherwise None."""
        if now > self.last_event_deadline:
            timeout_s = self._timeout_s
            return ApiError(
                "deadline_exceeded",
                f"The response was not complete within {timeout_s:g} seconds. Reduce max_tokens.",
            )
        if not self.has_begun and now > self.first_event_deadline:
            queue_timeout_s = self._queue_timeout_s
            return ApiError(
                "queue_timeout",
                f"No worker started this request within the queue timeout of {queue_timeout_s:g} seconds. "
                "Retry.",
                retry_after_s=1.0,
            )
        return None

    def hand_over_charge(self, other: OutputQueue) -> None:
        """Let another queue of the same job account for the tokens that were charged at submission."""
        other.num_charged_tokens, self.num_charged_tokens = self.num_charged_tokens, 0.0

    async def aclose(self) -> None:
        """Stop reading. Cancel the job unless it has ended or is resumable. Further calls are no-ops."""
        await self._close(self)


def events_by_job(batch: Iterable[tuple[str, Event]]) -> dict[str, list[Event]]:
    """Group (job ID, event) pairs by job, in order."""
    events: dict[str, list[Event]] = {}
    for job_id, event in batch:
        events.setdefault(job_id, []).append(event)
    return events
