"""Every open answer of this process: jobs go out through ``submit``, events come back through ``follow``.

    routes/chat  --submit-->  Controller  --submit-->  JobProducer
    Answer.next  <--put----   run()       <--follow--  JobProducer

Invariant: an Answer is in the table from before its job is submitted until it is finished or closed, and a
job whose Answer is closed unfinished is cancelled; one that is *kept* only when no reader has come back
within the grace. Who asks for an answer that somebody else reads is a guest and reads along. A slow reader
costs memory for its text only, which is bounded by the answer's length; the follow loop waits for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import anyio
import msgspec
from llava_wire.controller_side.limits import TenantLimits
from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.queue_status import JobSnapshot
from llava_wire.errors import AlreadySubmitted, DuplicateJob, QueueFull, QueueUnavailable, TenantOverLimit
from llava_wire.messages.job import Job
from llava_wire.stores.api_keys import KeyLimits

from llava_server.errors import ApiError, answer_not_found, from_wire_error
from llava_server.generation.detached_jobs import Unread
from llava_server.generation.log_tail import read_along
from llava_server.generation.output_queue import Answer
from llava_server.periodic import run_periodically
from llava_server.request_metrics import Metrics
from llava_server.tracing import traceparent

__all__ = ["Controller"]

logger = logging.getLogger(__name__)

_TICK_S = 1.0  # between two looks for dead workers, and for overdue answers
_CANCEL_TIMEOUT_S = 5.0
_LOWEST, _HIGHEST = -1, 1  # of the priorities
_NO_EVENTS = 2**31  # as if so many were known: a look at the job without its log


class TokenLimiter(Protocol):
    """The limits of each tenant and the tokens that its jobs are charged."""

    def limits(self, tenant: str) -> KeyLimits: ...

    async def charge_tokens(self, tenant: str, num_tokens: float) -> None:
        """Raises ApiError (429, 503)."""
        ...

    async def reconcile_tokens(self, tenant: str, *, estimated: float, used: int) -> None: ...


class Controller:
    """Owner of the open answers. ``run`` must be running while anyone submits."""

    def __init__(
        self,
        producer: JobProducer,
        metrics: Metrics,
        limiter: TokenLimiter,
        *,
        queue_timeout_s: float,
        orphan_grace_s: float = 30.0,
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._limiter = limiter
        self._queue_timeout_s = queue_timeout_s
        self._answers: dict[str, Answer] = {}
        self._unread = Unread(producer, metrics, grace_s=orphan_grace_s)
        self._guests: dict[Answer, asyncio.Task[None]] = {}
        self.failure: str | None = None  # why this process is of no use any more

    @property
    def num_answers(self) -> int:
        return len(self._answers) + len(self._guests)

    async def submit(
        self,
        job: Job,
        pixels: Mapping[str, bytes],
        *,
        news: asyncio.Event | None = None,
        is_kept: bool = False,
    ) -> Answer:
        """Puts the job into the queue. Raises ApiError (409, 429, 503): it takes no more, or is not there.

        The caller must ``aclose`` the answer. With ``is_kept`` the job outlives that by the orphans' grace,
        and if the very same job is known already, its one answer is read here too; one in the background is
        kept for good.
        """
        is_kept = is_kept or job.is_background
        limits = self._limiter.limits(job.tenant)
        urgency = min(max(job.priority + limits.priority, _LOWEST), _HIGHEST)
        job = msgspec.structs.replace(job, priority=urgency)
        answer = self._make_answer(job, job.ttl_s, is_kept=is_kept, news=news)
        try:
            if not (is_kept and self._producer.is_live(job)):
                terms = TenantLimits(weight=limits.weight, max_jobs=limits.max_jobs)
                await self._submit(answer, job, pixels, terms)
                return answer
        except AlreadySubmitted:
            pass
        except (DuplicateJob, QueueFull, TenantOverLimit, QueueUnavailable) as error:
            raise from_wire_error(error) from error
        if job.job_id in self._unread:
            return await self.resume(job, timeout_s=job.ttl_s, news=news)
        self._guests[answer] = asyncio.create_task(self._be_guest(answer))
        return answer

    async def resume(self, job: Job, *, timeout_s: float, news: asyncio.Event | None = None) -> Answer:
        """The answer to a job of this outline, from its first event on; who reads it elsewhere is cut off.

        Raises ApiError: 404 if there is none (any more) for this tenant, 503 without the queue.
        """
        job_id, answer = job.job_id, self._make_answer(job, timeout_s, is_kept=True, news=news)
        with _queue_errors():
            events = await self._producer.attach(job_id, tenant=job.tenant)
        if events is None:
            raise answer_not_found()
        # No await from here on: what comes later than ``events`` must find the answer in the table.
        former = self._answers.pop(job_id, None)
        if former is not None:
            former.put(ApiError("stream_taken_over", "another connection reads this answer on"))
        self._unread.forget(job_id)
        for event in events:
            answer.put(event)
        answer.has_begun = True
        if not answer.is_finished:
            self._answers[job_id] = answer
        return answer

    async def peek(self, job_id: str, tenant: str, *, has_events: bool = True) -> JobSnapshot:
        """The answer so far, which stays with whoever reads it. Raises ApiError as ``resume``."""
        known = 0 if has_events else _NO_EVENTS
        with _queue_errors():
            seen = await self._producer.peek(job_id, tenant=tenant, num_events=known)
        if seen is None:
            raise answer_not_found()
        return seen

    async def cancel(self, job_id: str, tenant: str) -> bool:
        """Ends a job wherever it is read; False if there is none to end. Raises ApiError (503)."""
        with _queue_errors():
            is_cancelled = await self._producer.cancel(job_id, tenant=tenant)
        if is_cancelled:
            self._unread.forget(job_id)
            if (answer := self._answers.get(job_id)) is not None:
                answer.put(ApiError("answer_cancelled", "this answer was cancelled"))
        return is_cancelled

    async def forget(self, job_id: str, tenant: str) -> bool:
        """Deletes an answer, as ``JobProducer.forget``. Raises ApiError (503)."""
        with _queue_errors():
            return await self._producer.forget(job_id, tenant=tenant)

    async def close(self, answer: Answer) -> None:
        """See ``Answer.aclose``."""
        if (guest := self._guests.pop(answer, None)) is not None:
            guest.cancel()
            await asyncio.gather(guest, return_exceptions=True)
            return
        if self._answers.get(answer.job_id) is not answer:
            return
        del self._answers[answer.job_id]
        if answer.is_finished:
            await self._settle(answer)
            return
        if answer.is_kept:
            self._unread.add(answer)
            return
        self._metrics.request_cancelled()
        await self._cancel(answer)

    def end_all(self, error: ApiError) -> None:
        """Every open answer gets this as its last word."""
        for answer in (*self._answers.values(), *self._guests):
            if not answer.is_finished:
                answer.put(error)

    async def run(self) -> None:
        """Routes events and takes jobs back from dead workers, until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow)
                tasks.start_soon(run_periodically, _TICK_S, self._reap)
                tasks.start_soon(run_periodically, _TICK_S, self._end_overdue)
                tasks.start_soon(run_periodically, _TICK_S, self._unread.abandon)
        except Exception as error:
            logger.exception("the controller cannot go on")
            self.failure = f"the controller's loop ended: {type(error).__name__}"
            self.end_all(ApiError("internal_error", "this server broke down; ask again"))

    async def _follow(self) -> None:
        async for batch in self._producer.follow():
            for job_id, event in batch:
                if (answer := self._answers.get(job_id)) is not None:
                    answer.put(event)
                elif event.final is not None:
                    self._unread.forget(job_id)

    async def _reap(self) -> None:
        try:
            num_jobs = await self._producer.reap()
        except QueueUnavailable:
            return  # the registry says so, once
        if num_jobs:
            logger.warning("%d jobs taken back from dead or hung workers", num_jobs)
            self._metrics.jobs_reaped.inc(num_jobs)

    async def _end_overdue(self) -> None:
        now = time.monotonic()
        for answer in (*self._answers.values(), *self._guests):
            if not answer.is_finished and (error := answer.overdue(now)) is not None:
                answer.put(error)

    def _make_answer(
        self, job: Job, timeout_s: float, *, is_kept: bool, news: asyncio.Event | None
    ) -> Answer:
        return Answer(
            job.job_id,
            job.tenant,
            timeout_s=timeout_s,
            queue_timeout_s=self._queue_timeout_s,
            is_kept=is_kept,
            is_background=job.is_background,
            close=self.close,
            news=news,
        )

    async def _submit(
        self, answer: Answer, job: Job, pixels: Mapping[str, bytes], terms: TenantLimits
    ) -> None:
        self._answers[job.job_id] = answer  # first: an event may be here before submit returns
        is_submitted = False
        try:
            await self._limiter.charge_tokens(job.tenant, job.cost)
            answer.charged = job.cost
            answer.place = await self._producer.submit(job, pixels, terms, traceparent())
            is_submitted = True
        finally:
            if not is_submitted:  # the producer sees to it that such a job does not run
                del self._answers[job.job_id]
                await self._settle(answer)

    async def _settle(self, answer: Answer) -> None:
        """What was charged in advance becomes what was used; of an answer that never ran, nothing."""
        if answer.charged:
            await self._limiter.reconcile_tokens(
                answer.tenant, estimated=answer.charged, used=answer.num_tokens
            )
            answer.charged = 0.0

    async def _be_guest(self, answer: Answer) -> None:
        """Reads along until the end, or until there is nobody to read along with: then it is ours."""
        num_events = await read_along(self._producer, answer)
        while num_events is not None:
            try:
                events = await self._producer.attach(answer.job_id, tenant=answer.tenant)
            except QueueUnavailable:
                await asyncio.sleep(_TICK_S)
                continue
            self._answers[answer.job_id] = answer
            del self._guests[answer]
            if events is None:
                answer.put(ApiError("answer_cancelled", "this answer was cancelled: ask again"))
            for event in (events or [])[num_events:]:
                answer.put(event)
            return

    async def _cancel(self, answer: Answer) -> None:
        """Also works while the caller itself is being cancelled."""
        with anyio.move_on_after(_CANCEL_TIMEOUT_S, shield=True):
            try:
                await self._producer.cancel(answer.job_id, tenant=answer.tenant)
            except QueueUnavailable:
                logger.warning("job %s could not be cancelled: the queue cannot be reached", answer.job_id)


@contextmanager
def _queue_errors() -> Iterator[None]:
    """Raises ApiError for a queue that cannot be reached."""
    try:
        yield
    except QueueUnavailable as error:
        raise from_wire_error(error) from error
