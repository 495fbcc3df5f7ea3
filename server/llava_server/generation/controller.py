"""The controller, which manages all jobs whose output is read by clients of this process.

    handler  --submit-->  Controller      --submit-->  JobProducer (Redis)
    handler  <---get----  OutputQueue <--put-- Controller      <--follow--  JobProducer

Each job is in one of three collections:

- ``_open``: this process streams the job. The task "follow" puts its events into its OutputQueue.
- ``_detached``: the job is resumable and its client has disconnected. The job is cancelled unless a client
  reconnects within the grace period.
- ``_followers``: another connection, to this or another server, is streaming the job. Its events are copied
  into further OutputQueues. One of them takes over the stream if the other connection ends.

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
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Protocol

import anyio
import msgspec
from llava_wire.controller_side.limits import TenantLimits
from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.query_results import JobSnapshot
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import AlreadySubmitted, DuplicateJob, QueueFull, QueueUnavailable, TenantOverLimit
from llava_wire.messages.event import ErrorCode, Event
from llava_wire.messages.job import Job
from llava_wire.stores.api_keys import KeyLimits

from llava_server.errors import ApiError, from_wire_error, response_not_found
from llava_server.generation.detached_jobs import DetachedJobs
from llava_server.generation.followers import MAX_READERS, Followers, log_interval_s, read_log
from llava_server.generation.output_queue import OutputQueue, events_by_job
from llava_server.metrics import Metrics
from llava_server.periodic import run_periodically
from llava_server.queue_health import QueueHealth
from llava_server.supervised_tasks import SupervisedTasks
from llava_server.tracing import traceparent

__all__ = ["Controller", "TokenLimiter"]

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0  # interval between checks for lost workers and expired deadlines
_CANCEL_TIMEOUT_S = 5.0
_READERS_RETRY_S = 1.0
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
        producer: ShardedProducer,
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
        self._followers: dict[str, Followers] = {}  # keyed by job ID; never empty
        self._num_reads: Counter[str] = Counter()  # by job ID, of calls that read the whole output from Redis
        self.failure: str | None = None  # set if this process must be restarted

    @property
    def num_open(self) -> int:
        """The number of outputs being read by clients of this process."""
        return len(self._open) + sum(len(each.queues) for each in self._followers.values())

    def on_available_shard(self, job: Job) -> Job:
        """Return a new job, with another ID if the queue shard that its ID selects is unavailable."""
        return msgspec.structs.replace(job, job_id=self._producer.pick_job_id(job.job_id))

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
        self._check_num_readers(job.job_id)
        limits = self._limiter.limits(job.tenant)
        output = self._new_queue(job, job.ttl_s, is_resumable=is_resumable, event_arrived=event_arrived)
        try:
            if not (is_resumable and self._producer.shard(job.job_id).is_live(job)):
                await self._submit(output, job, pixels, limits)
                return output
        except AlreadySubmitted:
            pass
        except (DuplicateJob, QueueFull, TenantOverLimit, QueueUnavailable) as error:
            raise from_wire_error(error) from error
        if job.job_id in self._detached:
            return await self.resume(job, timeout_s=job.ttl_s, event_arrived=event_arrived)
        self._check_num_readers(job.job_id)  # again, because simultaneous requests may have become readers
        self._follow_other(output)
        return output

    async def resume(
        self, job: Job, *, timeout_s: float, event_arrived: asyncio.Event | None = None
    ) -> OutputQueue:
        """Take over the stream of an existing job, starting at its first event.

        Any connection that is already reading the stream gets an error.

        Raises ApiError: 404 if the tenant has no such job or the job has expired, 429 if too many connections
        read the job, 503 if the queue is unavailable.
        """
        job_id = job.job_id
        output = self._new_queue(job, timeout_s, is_resumable=True, event_arrived=event_arrived)
        with self._counted_read(job_id), _queue_errors():
            events = await self._producer.shard(job_id).attach(job_id, tenant=job.tenant)
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
        if (followers := self._followers.get(job_id)) is not None:
            followers.join_stream(events)
        return output

    async def snapshot(
        self, job_id: str, tenant: str, *, has_events: bool = True, is_read: bool = True
    ) -> JobSnapshot:
        """Return the output that a job has generated so far, without taking over its stream.

        ``is_read`` is false if no client is interested in the output at the moment, which does not keep a
        detached job alive. Raises the same errors as ``resume``.
        """
        num_events = 0 if has_events else _ALL_EVENTS
        with self._counted_read(job_id) if is_read and has_events else nullcontext(), _queue_errors():
            snapshot = await self._producer.shard(job_id).snapshot(
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
            is_cancelled = await self._producer.shard(job_id).cancel(job_id, tenant=tenant)
        if is_cancelled:
            self._detached.discard(job_id)
            error = ApiError("answer_cancelled", "The response was cancelled.")
            if (output := self._open.get(job_id)) is not None:
                output.put(error)
            if (followers := self._followers.get(job_id)) is not None:
                followers.fail(error)
        return is_cancelled

    async def delete(self, job_id: str, tenant: str) -> bool:
        """Delete a job and its output. Return whether the job existed. Raises ApiError (503)."""
        with _queue_errors():
            return await self._producer.shard(job_id).delete(job_id, tenant=tenant)

    async def close(self, output: OutputQueue) -> None:
        """Close a queue. See ``OutputQueue.aclose``."""
        followers = self._followers.get(output.job_id)
        if followers is not None and output in followers.queues:
            await self._leave(followers, output)
            return
        if self._open.get(output.job_id) is not output:
            return
        del self._open[output.job_id]
        if output.is_finished:
            await self._reconcile_tokens(output)
        elif followers is not None and followers.is_local:
            self._open[output.job_id] = followers.queues[0]
            output.hand_over_charge(followers.queues[0])
            await self._leave(followers, followers.queues[0])
        elif output.is_resumable:
            self._detached.add(output)
        else:
            self._metrics.request_cancelled()
            await self._cancel(output)

    def fail_all(self, error: ApiError) -> None:
        """End all open streams with the given error."""
        for output in self._all_open():
            if not output.is_finished:
                output.put(error)

    def start(self) -> None:
        """Distribute events, reclaim jobs from lost workers and enforce deadlines, each in its own task."""
        for index, shard in enumerate(self._producer.shards):
            self._supervised.start(
                "follow",
                partial(self._follow, shard),
                max_restarts=_MAX_FOLLOW_RESTARTS,
                on_final_crash=self._fail_process,
            )
            reap = partial(self._reap, shard, index)
            self._supervised.start("reap", partial(run_periodically, _INTERVAL_S, reap))
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "deadlines": self._enforce_deadlines,
            "detached jobs": self._detached.cancel_expired,
        }
        for name, step in steps.items():
            self._supervised.start(name, partial(run_periodically, _INTERVAL_S, step))

    def _fail_process(self, error: BaseException) -> None:
        self.failure = f"The controller loop failed with {type(error).__name__}. Restart the server."
        self.fail_all(_defect())

    async def _follow(self, shard: JobProducer) -> None:
        async for batch in shard.follow():
            # Do not await or raise anything below: a restart would not receive the rest of the batch again.
            for job_id, events in events_by_job(batch).items():
                if (output := self._open.get(job_id)) is not None:
                    output.put_all(events)
                elif events[-1].final is not None:
                    self._detached.discard(job_id)
                if (followers := self._followers.get(job_id)) is not None and followers.is_local:
                    for event in events:
                        self._put(followers, event)

    async def _reap(self, shard: JobProducer, index: int) -> None:
        self._health.report("follow", shard.follow_error, shard=index)
        try:
            num_jobs = await shard.reap()
        except QueueUnavailable as error:
            self._health.report("write", error, shard=index)
            return
        self._health.report("write", None, shard=index)
        if num_jobs:
            logger.warning("%d jobs reclaimed from lost or hung workers", num_jobs)
            self._metrics.jobs_reaped.inc(num_jobs)

    async def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for output in self._all_open():
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
        await self._limiter.charge_tokens(job.tenant, job.cost)
        output.num_charged_tokens = job.cost
        is_submitted, previous = False, self._open.get(job.job_id)
        try:
            if output.is_resumable and self._producer.shard(job.job_id).is_live(job):
                raise AlreadySubmitted(f"Job {job.job_id} was submitted in the meantime.")
            self._open[job.job_id] = output  # first, because an event may arrive before ``submit`` returns
            tenant_limits = TenantLimits(weight=limits.weight, max_jobs=limits.max_jobs)
            output.queue_position = await self._producer.shard(job.job_id).submit(
                job, pixels, tenant_limits, traceparent()
            )
            is_submitted = True
            self._begin_stream(job.job_id)
        finally:
            if not is_submitted:  # the job will not run unless another client reads it
                self._end_submission(output, previous)
                await self._reconcile_tokens(output)

    def _end_submission(self, output: OutputQueue, previous: OutputQueue | None) -> None:
        """Clean up after a submission that failed. ``previous`` was in ``_open`` before, and has finished."""
        if self._open.get(output.job_id) is not output:
            return
        del self._open[output.job_id]
        if previous is not None:
            self._open[output.job_id] = previous
        if (followers := self._followers.get(output.job_id)) is not None and followers.is_local:
            self._start_reader(followers)

    async def _reconcile_tokens(self, output: OutputQueue) -> None:
        """Replace the charged estimate with the number of tokens that the job used.

        This number is 0 if the job did not run.
        """
        if output.num_charged_tokens:
            await self._limiter.reconcile_tokens(
                output.tenant, estimated=output.num_charged_tokens, used=output.num_used_tokens
            )
            output.num_charged_tokens = 0.0

    # Followers

    def _all_open(self) -> Iterator[OutputQueue]:
        return chain(self._open.values(), *(each.queues for each in self._followers.values()))

    def _check_num_readers(self, job_id: str) -> None:
        """Raise ApiError (429) if the job cannot have another reader."""
        followers = self._followers.get(job_id)
        num_readers = self._num_reads[job_id] + (1 + len(followers.queues) if followers else 0)
        if num_readers >= MAX_READERS:
            raise ApiError(
                "rate_limit_exceeded",
                f"This response already has {num_readers} readers; the limit is {MAX_READERS}. "
                "Wait for one to finish. For a new response, use another Idempotency-Key.",
                retry_after_s=_READERS_RETRY_S,
            )

    @contextmanager
    def _counted_read(self, job_id: str) -> Iterator[None]:
        """Count a call that reads the whole output of a job from Redis. Raises ApiError (429)."""
        self._check_num_readers(job_id)
        self._num_reads[job_id] += 1
        try:
            yield
        finally:
            self._num_reads[job_id] -= 1
            if not self._num_reads[job_id]:
                del self._num_reads[job_id]

    def _follow_other(self, output: OutputQueue) -> None:
        """Copy the events of a job that another connection streams into ``output``."""
        job_id = output.job_id
        followers = self._followers.get(job_id)
        if followers is None:
            events = self._producer.shard(job_id).delivered_events(job_id)
            followers = self._followers[job_id] = Followers(job_id, output.tenant, events or ())
            if events is None:
                self._start_reader(followers)
        followers.add(output)

    def _put(self, followers: Followers, event: Event) -> None:
        error = event.final.error if event.final else None
        if error is not None and error.code is ErrorCode.STREAM_TAKEN_OVER:
            self._start_reader(followers)  # another controller streams the job now
        else:
            followers.put(event)

    def _begin_stream(self, job_id: str) -> None:
        """Connect the followers of a job that has just been submitted to its stream.

        Followers with events belong to an earlier job with the same ID, which was cancelled or deleted.
        """
        if (followers := self._followers.get(job_id)) is None:
            return
        followers.join_stream(())
        if followers.num_events:
            followers.fail(ApiError("answer_cancelled", "The response was cancelled. Retry."))
            del self._followers[job_id]

    async def _leave(self, followers: Followers, output: OutputQueue) -> None:
        """Remove a follower. If it was the last one, also stop the task that reads the log."""
        followers.queues.remove(output)
        if followers.queues:
            return
        del self._followers[followers.job_id]
        if followers.reader is not None:
            followers.reader.cancel()
            await asyncio.gather(followers.reader, return_exceptions=True)

    def _start_reader(self, followers: Followers) -> None:
        if followers.is_finished:
            return

        def end(_: BaseException) -> None:
            followers.fail(_defect())
            self._remove(followers)

        followers.reader = self._supervised.start(
            "tail", partial(self._read_log, followers), max_restarts=0, on_final_crash=end
        )

    async def _read_log(self, followers: Followers) -> None:
        """Copy the events of a job that another controller streams.

        If that controller stops streaming the job, take over the stream.
        """
        job_id, tenant = followers.job_id, followers.tenant
        while await read_log(self._producer, followers, self._log_interval_s):
            try:
                events = await self._producer.shard(job_id).attach(job_id, tenant=tenant)
            except QueueUnavailable:
                await asyncio.sleep(_INTERVAL_S)
                continue
            self._take_over(followers, events)
            return
        if not followers.is_finished:
            self._remove(followers)

    def _take_over(self, followers: Followers, events: list[Event] | None) -> None:
        """Let the first follower own the stream. ``events`` are those of the job, or None if it has ended."""
        followers.reader = None  # the calling task
        if events is None:
            followers.fail(ApiError("answer_cancelled", "The response was cancelled. Retry."))
            self._remove(followers)
            return
        followers.join_stream(events)
        if followers.job_id not in self._open:
            self._open[followers.job_id] = followers.queues.pop(0)
            if not followers.queues:
                self._remove(followers)

    def _remove(self, followers: Followers) -> None:
        if self._followers.get(followers.job_id) is followers:
            del self._followers[followers.job_id]

    def _log_interval_s(self) -> float:
        return log_interval_s(sum(not each.is_local for each in self._followers.values()))

    async def _cancel(self, output: OutputQueue) -> None:
        """Cancel the job, even if the calling task is being cancelled."""
        with anyio.move_on_after(_CANCEL_TIMEOUT_S, shield=True):
            try:
                await self._producer.shard(output.job_id).cancel(output.job_id, tenant=output.tenant)
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
