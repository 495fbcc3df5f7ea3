"""The events of one job, queued for the coroutine that writes them to a client."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from llava_wire.controller_side.queue_status import QueuePosition
from llava_wire.messages.event import Event

from llava_server.errors import ApiError

__all__ = ["OutputQueue"]

_DEADLINE_SLACK_S = 5.0  # Redis ends an overdue job itself; this is for when it cannot


class OutputQueue:
    """The events of one job, in order. The controller puts them, one coroutine gets them.

    ``event_arrived`` is set at each event; queues that are read together share one. ``is_resumable``: the job
    outlives its client for a while; with ``is_background`` for good.
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
        self.is_finished = False  # whether the last event was put, not necessarily read
        self.queue_position: QueuePosition | None = None  # when the job was submitted
        self.num_charged_tokens = 0.0  # charged to the tenant's rate limit at submission
        self.num_used_tokens = 0  # prompt and output, once finished
        self.first_event_deadline = time.monotonic() + queue_timeout_s
        self.last_event_deadline = time.monotonic() + timeout_s + _DEADLINE_SLACK_S
        self._timeout_s = timeout_s
        self._close = close
        self._events: deque[Event | ApiError] = deque()
        self._event_arrived = event_arrived or asyncio.Event()

    def put(self, event: Event | ApiError) -> None:
        self.has_begun = True
        if isinstance(event, Event) and event.final is not None:
            self.is_finished = True
            self.num_used_tokens = event.final.num_prompt_tokens + event.next_offset
        self._events.append(event)
        self._event_arrived.set()

    async def get(self) -> Event:
        """Wait for the next event. Raises ApiError if this server cannot continue the stream."""
        while (event := self.get_nowait()) is None:
            self._event_arrived.clear()
            await self._event_arrived.wait()
        return event

    def get_nowait(self) -> Event | None:
        """Return the next event, or None if there is none yet. Raises ApiError as ``get`` does."""
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, ApiError):
            raise event
        return event

    def timeout_error(self, now: float) -> ApiError | None:
        """Return the error of a job that has exceeded a deadline at ``now``, or None."""
        if now > self.last_event_deadline:
            return ApiError("deadline_exceeded", f"the answer was not done within {self._timeout_s:g} s")
        if not self.has_begun and now > self.first_event_deadline:
            return ApiError(
                "queue_timeout", "no worker came to this request in time: come again", retry_after_s=1.0
            )
        return None

    async def aclose(self) -> None:
        """Stop reading; cancel the job unless it has ended or is resumable. A second call does nothing."""
        await self._close(self)
