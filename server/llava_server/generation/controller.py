"""The controller, which manages all jobs whose output is read by clients of this process.

    handler  --submit-->  Controller      --submit-->  JobProducer (Redis)
    handler  <---get----  OutputQueue <--put-- Controller      <--follow--  JobProducer

Each job is in one of three collections:

- ``_open``: this process streams the job. The task "follow" puts its events into its OutputQueue.
- ``_detached``: the job is resumable and its client has disconnected. The job is cancelled unless a client
  reconnects within the grace period.
- ``_tails``: another connection, to this or another server, is streaming the job. A task copies the events
  from the job's log into a second OutputQueue and takes over the stream if the other connection ends.

Invariant: an OutputQueue is added to ``_open`` before its job is submitted and stays there until it is
finished or closed. If it is closed first, a resumable job is detached and any other job is cancelled.
No task waits for a client. For a slow client, only the unread text is kept in memory, and its size is limited
by the output length.

Each background task is supervised on its own, so a defect in one does not end the streams. If "follow"
crashes several times in a row, the process exits, and clients resume their streams elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import anyio
from llava_wire.controller_side.limits import TenantLimits
from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.query_results import JobSnapshot
from llava_wire.errors import AlreadySubmitted, DuplicateJob, QueueFull, QueueUnavailable, TenantOverLimit
from llava_wire.messages.job import Job
from llava_wire.stores.api_keys import KeyLimits

from llava_server.errors import ApiError, from_wire_error, response_not_found
from llava_server.generation.detached_jobs import DetachedJobs
from llava_server.generation.job_log_reader import tail_log
from llava_server.generation.output_queue import OutputQueue
from llava_server.metrics import Metrics
from llava_server.periodic import run_periodically
from llava_server.queue_health import QueueHealth
from llava_server.supervised_tasks import SupervisedTasks
from llava_server.tracing import traceparent

__all__ = ["Controller", "TokenLimiter"]

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0  # interval between checks for lost workers and expired deadlines
_CANCEL_TIMEOUT_S = 5.0
_MAX_FOLLOW_RESTARTS = 4
_ALL_EVENTS = 2**31  # more than any job has, so a snapshot that skips this many events contains no events


class TokenLimiter(Protocol):
    """Provides the limits of each tenant and counts the tokens that the tenant uses."""

    def limits(self, tenant: str) -> KeyLimits: ...

    async def charge_tokens(self, tenant: str, num_tokens: float) -> None:
        """Charge an estimated number of tokens against the tenant's rate limit.

        Raises ApiError (429, 503).
        """
        ...

    async def reconcile_tokens(self, tenant: str, *, estimated: float, used: int) -> None: ...


class Controller:
    """A controller that submits jobs and, once ``start`` has been called, distributes their events.

    Its tasks run until ``tasks`` is closed.
    """

    def __init__(
        self,
        producer: JobProducer,
        metrics: Metrics,
        limiter: TokenLimiter,
        health: QueueHealth,
        tasks: SupervisedTasks,
        *,
        queue_timeout_s: float,
        orphan_grace_s: float = 30.0,
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._limiter = limiter
        self._health = health
        self._supervised = tasks
        self._queue_timeout_s = queue_timeout_s
        self._open: dict[str, OutputQueue] = {}  # keyed by job ID
        self._detached = DetachedJobs(producer, metrics, grace_s=orphan_grace_s)
        self._tails: dict[OutputQueue, asyncio.Task[None]] = {}
        self.failure: str | None = None  # set if this process must be restarted

    @property
    def num_open(self) -> int:
        """The number of outputs being read by clients of this process."""
        return len(self._open) + len(self._tails)

    async def submit(
        self,
        job: Job,
        pixels: Mapping[str, bytes],
        *,
        event_arrived: asyncio.Event | None = None,
        is_resumable: bool = False,
    ) -> OutputQueue:
        """Submit a job and return its output queue, which the caller must close.

        Raises ApiError (409, 429, 503).

        If the client disconnects, a resumable job continues until the grace period ends, and a background job
        continues until it finishes. If an identical resumable job already exists, the returned queue receives
        the output of that job.
        """
        is_resumable = is_resumable or job.is_background
        limits = self._limiter.limits(job.tenant)
        output = self._new_queue(job, job.ttl_s, is_resumable=is_resumable, event_arrived=event_arrived)
        try:
            if not (is_resumable and self._producer.is_live(job)):
                await self._submit(output, job, pixels, limits)
                return output
        except AlreadySubmitted:
            pass
        except (DuplicateJob, QueueFull, TenantOverLimit, QueueUnavailable) as error:
            raise from_wire_error(error) from error
        if job.job_id in self._detached:
            return await self.resume(job, timeout_s=job.ttl_s, event_arrived=event_arrived)
        self._tails[output] = self._supervised.start(
            "tail",
            partial(self._tail, output),
            max_restarts=0,
            on_final_crash=lambda _: output.put(_defect()),
        )
        return output

    async def resume(
        self, job: Job, *, timeout_s: float, event_arrived: asyncio.Event | None = None
    ) -> OutputQueue:
        """Take over the stream of an existing job, starting at its first event.

        Any connection that is already reading the stream gets an error.

        Raises ApiError: 404 if the tenant has no such job or the job has expired, 503 if the queue is
        unavailable.
        """
        job_id = job.job_id
        output = self._new_queue(job, timeout_s, is_resumable=True, event_arrived=event_arrived)
        with _queue_errors():
            events = await self._producer.attach(job_id, tenant=job.tenant)
        if events is None:
            raise response_not_found()
        # Do not await anything below: no event may be distributed before the new queue is in ``_open``.
        previous = self._open.pop(job_id, None)
        if previous is not None:
            previous.put(ApiError("stream_taken_over", "Another connection has taken over this stream."))
        self._detached.discard(job_id)
        for event in events:
            output.put(event)
        output.has_begun = True
        if not output.is_finished:
            self._open[job_id] = output
        return output

    async def snapshot(
        self, job_id: str, tenant: str, *, has_events: bool = True, is_read: bool = True
    ) -> JobSnapshot:
        """Return the output that a job has generated so far, without taking over its stream.

        ``is_read`` is false if no client is interested in the output at the moment, which does not keep a
        detached job alive. Raises the same errors as ``resume``.
        """
        num_events = 0 if has_events else _ALL_EVENTS
        with _queue_errors():
            snapshot = await self._producer.snapshot(
                job_id, tenant=tenant, num_events=num_events, is_read=is_read
            )
        if snapshot is None:
            raise response_not_found()
        return snapshot

    async def cancel(self, job_id: str, tenant: str) -> bool:
        """Cancel a job, even if another connection is streaming it. Return whether the job was running.

        Raises ApiError (503).
        """
        with _queue_errors():
            is_cancelled = await self._producer.cancel(job_id, tenant=tenant)
        if is_cancelled:
            self._detached.discard(job_id)
            if (output := self._open.get(job_id)) is not None:
                output.put(ApiError("answer_cancelled", "The response was cancelled."))
        return is_cancelled

    async def delete(self, job_id: str, tenant: str) -> bool:
        """Delete a job and its output. Return whether the job existed. Raises ApiError (503)."""
        with _queue_errors():
            return await self._producer.delete(job_id, tenant=tenant)

    async def close(self, output: OutputQueue) -> None:
        """Close a queue. See ``OutputQueue.aclose``."""
        if (tail := self._tails.pop(output, None)) is not None:
            tail.cancel()
            await asyncio.gather(tail, return_exceptions=True)
            return
        if self._open.get(output.job_id) is not output:
            return
        del self._open[output.job_id]
        if output.is_finished:
            await self._reconcile_tokens(output)
        elif output.is_resumable:
            self._detached.add(output)
        else:
            self._metrics.request_cancelled()
            await self._cancel(output)

    def fail_all(self, error: ApiError) -> None:
        """End all open streams with the given error."""
        for output in (*self._open.values(), *self._tails):
            if not output.is_finished:
                output.put(error)

    def start(self) -> None:
        """Distribute events, reclaim jobs from lost workers and enforce deadlines, each in its own task."""
        self._supervised.start(
            "follow", self._follow, max_restarts=_MAX_FOLLOW_RESTARTS, on_final_crash=self._fail_process
        )
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "reap": self._reap,
            "deadlines": self._enforce_deadlines,
            "detached jobs": self._detached.cancel_expired,
        }
        for name, step in steps.items():
            self._supervised.start(name, partial(run_periodically, _INTERVAL_S, step))

    def _fail_process(self, error: BaseException) -> None:
        self.failure = f"The controller loop failed with {type(error).__name__}. Restart the server."
        self.fail_all(_defect())

    async def _follow(self) -> None:
        async for batch in self._producer.follow():
            # Do not await or raise anything below: a restart would not receive the rest of the batch again.
            for job_id, event in batch:
                if (output := self._open.get(job_id)) is not None:
                    output.put(event)
                elif event.final is not None:
                    self._detached.discard(job_id)

    async def _reap(self) -> None:
        self._health.report("follow", self._producer.follow_error)
        try:
            num_jobs = await self._producer.reap()
        except QueueUnavailable as error:
            self._health.report("write", error)
            return
        self._health.report("write", None)
        if num_jobs:
            logger.warning("%d jobs reclaimed from lost or hung workers", num_jobs)
            self._metrics.jobs_reaped.inc(num_jobs)

    async def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for output in (*self._open.values(), *self._tails):
            if not output.is_finished and (error := output.timeout_error(now)) is not None:
                output.put(error)

    def _new_queue(
        self, job: Job, timeout_s: float, *, is_resumable: bool, event_arrived: asyncio.Event | None
    ) -> OutputQueue:
        return OutputQueue(
            job.job_id,
            job.tenant,
            timeout_s=timeout_s,
            queue_timeout_s=self._queue_timeout_s,
            is_resumable=is_resumable,
            is_background=job.is_background,
            close=self.close,
            event_arrived=event_arrived,
        )

    async def _submit(
        self, output: OutputQueue, job: Job, pixels: Mapping[str, bytes], limits: KeyLimits
    ) -> None:
        self._open[job.job_id] = output  # first, because an event may arrive before ``submit`` returns
        is_submitted = False
        try:
            await self._limiter.charge_tokens(job.tenant, job.cost)
            output.num_charged_tokens = job.cost
            tenant_limits = TenantLimits(weight=limits.weight, max_jobs=limits.max_jobs)
            output.queue_position = await self._producer.submit(job, pixels, tenant_limits, traceparent())
            is_submitted = True
        finally:
            if not is_submitted:  # the job will not run unless another client reads it
                del self._open[job.job_id]
                await self._reconcile_tokens(output)

    async def _reconcile_tokens(self, output: OutputQueue) -> None:
        """Replace the charged estimate with the number of tokens that the job used.

        This number is 0 if the job did not run.
        """
        if output.num_charged_tokens:
            await self._limiter.reconcile_tokens(
                output.tenant, estimated=output.num_charged_tokens, used=output.num_used_tokens
            )
            output.num_charged_tokens = 0.0

    async def _tail(self, output: OutputQueue) -> None:
        """Copy the events of a job that another connection streams.

        If that connection ends, take over the stream.
        """
        num_events = await tail_log(self._producer, output)
        while num_events is not None:
            try:
                events = await self._producer.attach(output.job_id, tenant=output.tenant)
            except QueueUnavailable:
                await asyncio.sleep(_INTERVAL_S)
                continue
            self._open[output.job_id] = output
            del self._tails[output]
            if events is None:
                output.put(ApiError("answer_cancelled", "The response was cancelled. Retry."))
            for event in (events or [])[num_events:]:
                output.put(event)
            return

    async def _cancel(self, output: OutputQueue) -> None:
        """Cancel the job, even if the calling task is being cancelled."""
        with anyio.move_on_after(_CANCEL_TIMEOUT_S, shield=True):
            try:
                await self._producer.cancel(output.job_id, tenant=output.tenant)
            except QueueUnavailable:
                logger.warning("job %s could not be cancelled: the job queue is unavailable", output.job_id)


def _defect() -> ApiError:
    return ApiError("internal_error", "The server encountered an internal error. Retry.")


@contextmanager
def _queue_errors() -> Iterator[None]:
    """Convert QueueUnavailable to ApiError (503)."""
    try:
        yield
    except QueueUnavailable as error:
        raise from_wire_error(error) from error
