"""One open answer: the events of a job on their way to whoever reads it over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from llava_wire.controller_side.queue_status import QueuePosition
from llava_wire.messages.event import Event

from llava_server.errors import ApiError

__all__ = ["Answer"]

_DEADLINE_SLACK_S = 5.0  # the queue ends an overdue job itself; this is for the day it cannot


class Answer:
    """The events of one job, in order. Read by one coroutine.

    ``news`` is set at each event; answers that are read together share one. ``is_kept``: its reader may come
    back; ``is_background``: whenever that is.
    """

    def __init__(
        self,
        job_id: str,
        tenant: str,
        *,
        timeout_s: float,
        queue_timeout_s: float,
        is_kept: bool,
        is_background: bool = False,
        close: Callable[[Answer], Awaitable[None]],
        news: asyncio.Event | None = None,
    ) -> None:
        self.job_id = job_id
        self.tenant = tenant
        self.is_kept = is_kept
        self.is_background = is_background
        self.has_begun = False  # a worker has come to it
        self.place: QueuePosition | None = None  # in the queue, when it came
        self.charged = 0.0  # tokens, in advance, to its key's minute
        self.num_tokens = 0  # of prompt and answer, once it has ended
        self.first_event_by = time.monotonic() + queue_timeout_s
        self.last_event_by = time.monotonic() + timeout_s + _DEADLINE_SLACK_S
        self._timeout_s = timeout_s
        self._close = close
        self._events: deque[Event | ApiError] = deque()
        self._has_news = news or asyncio.Event()
        self._is_finished = False

    async def next(self) -> Event:
        """The next event. Raises ApiError if this process cannot go on with the answer."""
        while (event := self.take()) is None:
            self._has_news.clear()
            await self._has_news.wait()
        return event

    def take(self) -> Event | None:
        """The next event if it has come. Raises like ``next``."""
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, ApiError):
            raise event
        return event

    async def aclose(self) -> None:
        """Lets go of the answer; cancels the job unless it has ended or is kept. Does nothing twice."""
        await self._close(self)

    @property
    def is_finished(self) -> bool:
        """Whether the job's last event has come (not necessarily been read)."""
        return self._is_finished

    def overdue(self, now: float) -> ApiError | None:
        """What to say if the answer has had its time, None if it has not."""
        if now > self.last_event_by:
            return ApiError("deadline_exceeded", f"the answer was not done within {self._timeout_s:g} s")
        if not self.has_begun and now > self.first_event_by:
            return ApiError(
                "queue_timeout", "no worker came to this request in time: come again", retry_after_s=1.0
            )
        return None

    def put(self, event: Event | ApiError) -> None:
        """For whoever brings the events only."""
        self.has_begun = True
        if isinstance(event, Event) and event.final is not None:
            self._is_finished = True
            self.num_tokens = event.final.num_prompt_tokens + event.next_offset
        self._events.append(event)
        self._has_news.set()
