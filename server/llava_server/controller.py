"""Every open answer of this process: jobs go out through ``submit``, events come back through ``follow``.

    routes/chat  --submit-->  Controller  --submit-->  JobProducer
    Answer.next  <--put----   run()       <--follow--  JobProducer

Invariant: an Answer is in the table from before its job is submitted until it is finished or closed, and a
job whose Answer is closed unfinished is cancelled. A slow reader costs memory for its text only, which is
bounded by the answer's length; the follow loop never waits for anyone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import anyio
import msgspec
from llava_wire import Event, Job, JobProducer, QueueFull, QueueUnavailable, TenantOverLimit

from llava_server.errors import ApiError
from llava_server.metrics import Metrics
from llava_server.rates import RateLimiter

__all__ = ["Answer", "Controller"]

logger = logging.getLogger(__name__)

_TICK_S = 1.0  # between two looks for dead workers, and for overdue answers
_DEADLINE_SLACK_S = 5.0  # the queue ends an overdue job itself; this is for the day it cannot
_CANCEL_TIMEOUT_S = 5.0


class Answer:
    """The events of one job, in order. Read by one coroutine.

    ``news`` is set at each event; answers that are read together share one.
    """

    def __init__(
        self, controller: Controller, job: Job, *, queue_timeout_s: float, news: asyncio.Event | None = None
    ) -> None:
        self.job = job
        self.first_event_by = time.monotonic() + queue_timeout_s
        self.last_event_by = time.monotonic() + job.ttl_s + _DEADLINE_SLACK_S
        self.is_submitted = False
        self._controller = controller
        self._events: deque[Event | ApiError] = deque()
        self._has_news = news or asyncio.Event()
        self._has_begun = False
        self._is_finished = False
        self._num_tokens: int | None = None

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
        """Lets go of the answer; cancels the job unless it has ended. Does nothing the second time."""
        await self._controller.close(self)

    @property
    def is_finished(self) -> bool:
        """Whether the job's last event has come (not necessarily been read)."""
        return self._is_finished

    @property
    def num_tokens(self) -> int | None:
        """Of prompt and answer; None until a worker has said."""
        return self._num_tokens

    def overdue(self, now: float) -> ApiError | None:
        """What to say if the answer has had its time, None if it has not."""
        if now > self.last_event_by:
            return ApiError("deadline_exceeded", f"the answer was not done within {self.job.ttl_s:g} s")
        if not self._has_begun and now > self.first_event_by:
            return ApiError(
                "queue_timeout", "no worker came to this request in time: come again", retry_after_s=1.0
            )
        return None

    def put(self, event: Event | ApiError) -> None:
        """For the controller only."""
        self._has_begun = True
        if isinstance(event, Event) and event.final is not None:
            self._is_finished = True
            self._num_tokens = event.final.num_prompt_tokens + event.next_offset
        self._events.append(event)
        self._has_news.set()


class Controller:
    """Owner of the open answers. ``run`` must be running while anyone submits."""

    def __init__(
        self, producer: JobProducer, metrics: Metrics, limiter: RateLimiter, *, queue_timeout_s: float
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._limiter = limiter
        self._queue_timeout_s = queue_timeout_s
        self._answers: dict[str, Answer] = {}
        self.failure: str | None = None  # why this process is of no use any more

    @property
    def num_answers(self) -> int:
        return len(self._answers)

    async def submit(
        self, job: Job, pixels: Mapping[str, bytes], *, news: asyncio.Event | None = None
    ) -> Answer:
        """Puts the job into the queue. Raises ApiError (429, 503) if it takes no more or cannot be reached.

        The caller must ``aclose`` the answer.
        """
        limits = self._limiter.limits(job.tenant)
        await self._limiter.take_tokens(job.tenant, job.cost)
        answer = Answer(self, job, queue_timeout_s=self._queue_timeout_s, news=news)
        self._answers[job.job_id] = answer  # first: an event may be here before submit returns
        try:
            weighed = msgspec.structs.replace(
                job, cost=job.cost / limits.weight, priority=job.priority + limits.priority
            )
            await self._producer.submit(weighed, pixels, max_tenant_jobs=limits.max_jobs)
            answer.is_submitted = True
        except (QueueFull, TenantOverLimit, QueueUnavailable) as error:
            await self._limiter.settle(job.tenant, estimated=job.cost, used=0)
            raise _as_api_error(error) from error
        finally:
            if not answer.is_submitted:  # the producer sees to it that such a job does not run
                del self._answers[job.job_id]
        return answer

    async def close(self, answer: Answer) -> None:
        """See ``Answer.aclose``."""
        if self._answers.pop(answer.job.job_id, None) is None:
            return
        if not answer.is_finished:
            self._metrics.cancelled()
            await self._cancel(answer.job)
        elif answer.num_tokens is not None:
            await self._limiter.settle(answer.job.tenant, estimated=answer.job.cost, used=answer.num_tokens)

    def end_all(self, error: ApiError) -> None:
        """Every open answer gets this as its last word."""
        for answer in self._answers.values():
            if not answer.is_finished:
                answer.put(error)

    async def run(self) -> None:
        """Routes events and takes jobs back from dead workers, until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow)
                tasks.start_soon(every, _TICK_S, self._reap)
                tasks.start_soon(every, _TICK_S, self._end_overdue)
        except Exception as error:
            logger.exception("the controller cannot go on")
            self.failure = f"the controller's loop ended: {type(error).__name__}"
            self.end_all(ApiError("internal_error", "this server broke down; ask again"))

    async def _follow(self) -> None:
        async for batch in self._producer.follow():
            for job_id, event in batch:
                if (answer := self._answers.get(job_id)) is not None:
                    answer.put(event)

    async def _reap(self) -> None:
        try:
            num_jobs = await self._producer.reap()
        except QueueUnavailable:
            return  # the registry says so, once
        if num_jobs:
            logger.warning("%d jobs taken back from dead or hung workers", num_jobs)
            self._metrics.migrated.inc(num_jobs)

    async def _end_overdue(self) -> None:
        now = time.monotonic()
        for answer in self._answers.values():
            if not answer.is_finished and (error := answer.overdue(now)) is not None:
                answer.put(error)

    async def _cancel(self, job: Job) -> None:
        """Also works while the caller itself is being cancelled."""
        with anyio.move_on_after(_CANCEL_TIMEOUT_S, shield=True):
            try:
                await self._producer.cancel(job.job_id, tenant=job.tenant)
            except QueueUnavailable:
                logger.warning("job %s could not be cancelled: the queue cannot be reached", job.job_id)


async def every(seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    """Runs ``step`` for ever, with ``seconds`` between the end of one and the start of the next."""
    while True:
        await step()
        await asyncio.sleep(seconds)


def _as_api_error(error: QueueFull | TenantOverLimit | QueueUnavailable) -> ApiError:
    if isinstance(error, TenantOverLimit):
        return ApiError("rate_limit_exceeded", str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, QueueFull):
        return ApiError("queue_full", str(error), retry_after_s=error.retry_after_s)
    return ApiError("queue_unavailable", "the job queue cannot be reached", retry_after_s=error.retry_after_s)
