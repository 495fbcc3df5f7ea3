"""The worker side of the queue: pull jobs, emit their events, report progress and requeue jobs.

``JobConsumer`` waits while Redis is unavailable: once connected, each method repeats its script with the same
arguments until Redis replies. Nonces in ``pull`` and frame numbers in ``emit`` make the scripts idempotent.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from llava_wire.errors import QueueUnavailable
from llava_wire.image_stores.location import image_store_digest, open_image_store
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode, Event, decode_log, error_event
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.job import WIRE_VERSION, Job
from llava_wire.messages.load_command import CommandStatus, IssuedCommand, ModelCommand
from llava_wire.redis.connection import Arg, Link, retry_forever
from llava_wire.redis.keys import PREFIX, wake_key
from llava_wire.worker_side.image_reader import ImageReader

__all__ = ["STEP_STAT", "EmitResult", "JobConsumer"]

COMMAND_TIMEOUT_S = 5.0
STEP_STAT = "step_s"  # heartbeat statistic: typical time per engine step in seconds, 0 or absent if unknown
WAIT_S = 1  # maximum time that a pull waits for jobs, which is also the maximum delay if a wake-up is lost
OUTDATED = msgspec.msgpack.encode(
    error_event(
        ErrorCode.WORKER_OUTDATED,
        "The worker that received this request is older than the server. Retry once it has been updated.",
    )
)
MODEL_CHANGED = msgspec.msgpack.encode(
    error_event(
        ErrorCode.MODEL_CHANGED,
        "The first part of this response was generated with weights or settings that no worker has any more. "
        "Send the request again.",
    )
)
# Maximum number of frames in the first script call of an emit. It is small, so that controllers can stream
# these tokens while the remaining frames are being sent.
FIRST_FRAMES = 32
MAX_FRAMES = 500  # maximum in each later call, limited because Lua unpacks the frames onto its stack

ScriptCall: TypeAlias = Callable[..., Awaitable[Any]]  # runs a script, given its name and arguments

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmitResult:
    """The result of an emit.

    ``refused`` contains the IDs of jobs that this worker no longer owns and must abort.
    ``has_overflow_waiting`` is True if ``pull_overflow`` would return a job. It is always False if ``emit``
    was called without ``check_overflow``.
    """

    refused: set[str]
    has_overflow_waiting: bool = False


class JobConsumer:
    """A worker's connection to the queue. Only one ``pull`` and one ``emit`` may run at a time."""

    def __init__(
        self,
        url: str,
        heartbeat: Heartbeat,
        *,
        lease_s: float,
        hang_timeout_s: float,
        prefix: str = PREFIX,
        image_store: str = "",
        num_shards: int = 1,
    ) -> None:
        """Create a consumer without connecting. ``image_store`` is the URL of a separate store for images."""
        self._heartbeat = heartbeat
        # What the worker's settings add to each heartbeat.
        self._settings = {"num_shards": num_shards, "image_store": image_store_digest(image_store)}
        self._worker_id = heartbeat.worker_id
        self._lease_ms = int(lease_s * 1000)
        self._hang_ms = int(hang_timeout_s * 1000)
        self._link = Link(url, timeout_s=COMMAND_TIMEOUT_S, prefix=prefix)
        self._waiter = Link(url, timeout_s=WAIT_S + 3, max_connections=1, prefix=prefix)
        self._images = ImageReader(open_image_store(image_store, prefix))
        self._held: dict[str, str] = {}  # job ID -> assignment ID
        # Assignment ID -> number of its last frame and length of the job's log in tokens.
        self._positions: dict[str, tuple[int, int]] = {}
        self._emitting: set[str] = set()  # jobs with an event in the emit in progress
        # Nonces of the pull in progress. After the pull, the IDs of the assignments that it returned, because
        # the worker may not have processed these assignments yet.
        self._pulling: list[str] = []
        # Job ID -> assignment ID of the jobs that the worker has lost, to be reported by the next emit.
        self._lost: dict[str, str] = {}
        self.num_writers = 1  # workers that have recently held jobs of this shard, as of the last emit
        self._last_command_id = ""  # ID of the last command that send_heartbeat returned
        self._is_unavailable = False  # whether the last call to Redis failed

    @classmethod
    async def connect(
        cls,
        url: str,
        heartbeat: Heartbeat,
        *,
        lease_s: float = 5.0,
        hang_timeout_s: float = 30.0,
        image_store: str = "",
    ) -> JobConsumer:
        """Register the worker. Raise QueueUnavailable if Redis is unavailable."""
        consumer = cls(
            url, heartbeat, lease_s=lease_s, hang_timeout_s=hang_timeout_s, image_store=image_store
        )
        try:
            await consumer.register()
        except BaseException:
            await consumer.aclose()
            raise
        return consumer

    async def register(self) -> None:
        """Register the worker. Raise QueueUnavailable if Redis is unavailable."""
        await self._renew_lease()

    @property
    def is_available(self) -> bool:
        """Whether Redis was available at the last call."""
        return not self._is_unavailable

    @property
    def num_held(self) -> int:
        """The number of jobs that are assigned to the worker."""
        return len(self._held)

    async def pull(self, max_jobs: int) -> list[Assignment]:
        """Pull up to ``max_jobs`` jobs in fair order. If none are waiting, wait up to about one second."""
        assignments = await self._pull(max_jobs)
        if not assignments and await self.wait_for_work():
            assignments = await self._pull(max_jobs)
        return assignments

    async def pull_overflow(self) -> list[Assignment]:
        """Pull a job of a tenant that has few jobs on this worker, even if no slot is free.

        A tenant has few jobs if they are fewer than half of an equal share of the worker's jobs.

        Return at most one assignment, without waiting.
        """
        return await self._pull(1, is_overflow=True)

    async def try_pull(self, max_jobs: int, *, is_overflow: bool = False) -> list[Assignment]:
        """Pull without waiting and without retries. Raise QueueUnavailable.

        If an error is raised, Redis may have assigned jobs anyway. ``try_reconcile`` requeues them.
        """
        return await self._pull(max_jobs, is_overflow=is_overflow, call=self._call_once)

    async def wait_for_work(self) -> bool:
        """Wait up to ``WAIT_S`` for a wake-up, and return whether jobs may be waiting."""
        try:
            name = wake_key(self._heartbeat.model, self._waiter.prefix)
            return bool(await self._waiter.command("BLPOP", name, WAIT_S))
        except QueueUnavailable:
            return True  # unknown, but the next pull waits for Redis anyway

    async def emit(
        self,
        events: Sequence[tuple[Assignment, Event]],
        *,
        check_overflow: bool = False,
    ) -> EmitResult:
        """Append events to the logs of their jobs. An event must start where the job's previous event ended.

        Because ``emit`` also reports progress, it must be called at least once per second while the worker
        holds jobs and its engine runs steps, even if there are no events.
        ``EmitResult.has_overflow_waiting`` is set only if ``check_overflow`` is True.
        """
        model = self._heartbeat.model if check_overflow else ""
        lost, self._lost = self._lost, {}
        refused = set(lost)
        has_overflow_waiting = False
        self._emitting = {assignment.job.job_id for assignment, _ in events}
        for part in _parts(events):
            args = [arg for assignment, event in part for arg in self._frame(assignment, event)]
            has_overflow, refused_ids, self.num_writers = await self._call(
                "emit", self._worker_id, self._lease_ms, self._hang_ms, model, *args
            )
            has_overflow_waiting |= bool(has_overflow)
            refused |= _job_ids(refused_ids)
        self._emitting = set()
        ended = [
            assignment for assignment, event in events if event.final or assignment.job.job_id in refused
        ]
        self._release([*lost.items(), *_ids(ended)])
        return EmitResult(refused, has_overflow_waiting)

    async def requeue(self, assignments: Sequence[Assignment]) -> None:
        """Return jobs to their previous positions in the queue. This does not count as a crash."""
        pairs = [arg for each in assignments for arg in (each.job.job_id, each.assignment_id)]
        await self._call("release_jobs", self._worker_id, *pairs)
        self._release(_ids(assignments))

    async def send_heartbeat(self, heartbeat: Heartbeat | None = None) -> IssuedCommand | None:
        """Renew the worker's lease and send its heartbeat. Return a new operator command, if there is one.

        If ``heartbeat`` is None, the previous heartbeat is sent again. Each heartbeat includes the status
        that was last passed to ``report_command``. A command is returned only once, and only after the
        previous command has finished.
        """
        self.replace_heartbeat(heartbeat)
        reply = await self._retry(self._renew_lease)
        if not reply or (self._heartbeat.command and not self._heartbeat.command.is_finished):
            return None
        command_id, packed = reply[0].decode(), reply[1]
        if command_id == self._last_command_id:
            return None
        self._last_command_id = command_id
        return IssuedCommand(command_id, msgspec.msgpack.decode(packed, type=ModelCommand))

    def replace_heartbeat(self, heartbeat: Heartbeat | None) -> None:
        """Set the heartbeat to send next, except for its command status, unless it is None."""
        status = self._heartbeat.command
        self._heartbeat = msgspec.structs.replace(heartbeat or self._heartbeat, command=status)

    def report_command(self, status: CommandStatus) -> None:
        """Set the command status to include in subsequent heartbeats."""
        self._heartbeat = msgspec.structs.replace(self._heartbeat, command=status)

    async def reconcile(self, held: Iterable[str]) -> set[str]:
        """Compare the jobs that the worker holds with its assignments in Redis.

        Return the held jobs that are no longer assigned to the worker. Jobs that are assigned to the worker
        but not held by it are requeued.
        """
        return await self._reconcile(held, self._call)

    async def try_reconcile(self, held: Iterable[str]) -> set[str]:
        """The same as ``reconcile``, without retries. Raise QueueUnavailable."""
        return await self._reconcile(held, self._call_once)

    async def deregister(self) -> None:
        """Remove the worker, and return its jobs to the queue."""
        await self._call("remove_worker", self._worker_id)

    async def aclose(self) -> None:
        await self._waiter.aclose()
        await self._link.aclose()
        await self._images.aclose()

    async def _reconcile(self, held: Iterable[str], call: ScriptCall) -> set[str]:
        assignments = {job_id: self._held.get(job_id, "") for job_id in held}
        places = [arg for job_id in assignments for arg in self._place(job_id)]
        lost = _job_ids(
            await call("reconcile_worker", self._worker_id, len(self._pulling), *self._pulling, *places)
        )
        self._release([(job_id, assignments[job_id]) for job_id in lost])
        return lost

    async def _renew_lease(self) -> Any:
        beat = msgspec.structs.replace(self._heartbeat, **self._settings)
        packed, status = msgspec.msgpack.encode(beat), beat.command
        finished_id = status.command_id if status and status.is_finished else ""
        model = (beat.model, beat.model_digest, beat.stats.get(STEP_STAT, 0))
        return await self._link.script(
            "heartbeat", self._worker_id, self._lease_ms, packed, finished_id, *model
        )

    async def _pull(
        self, max_jobs: int, *, is_overflow: bool = False, call: ScriptCall | None = None
    ) -> list[Assignment]:
        nonces = self._pulling = [uuid.uuid4().hex for _ in range(max_jobs)]
        try:
            jobs, blobs, now_ms = await (call or self._call)(
                "pull",
                self._worker_id,
                self._heartbeat.model,
                self._lease_ms,
                self._hang_ms,
                int(is_overflow),
                self._heartbeat.model_digest,
                MODEL_CHANGED,
                *nonces,
            )
            pixels = {digest.decode(): tiles for digest, tiles in zip(blobs[::2], blobs[1::2], strict=True)}
            assignments = await self._with_images(await self._decode(jobs, pixels, now_ms))
        finally:
            self._pulling = []
        rejected = [each for each in assignments if not self._can_accept(each)]
        if rejected:
            await self.requeue(rejected)
        accepted = [each for each in assignments if each not in rejected]
        for each in accepted:
            self._held[each.job.job_id] = each.assignment_id
            self._positions[each.assignment_id] = 0, len(each.token_ids)
        self._pulling = [each.assignment_id for each in accepted]
        return accepted

    async def _decode(self, rows: list[list[Any]], pixels: dict[str, bytes], now_ms: int) -> list[Assignment]:
        """Decode the jobs that this version can run. End the other jobs with an error."""
        assignments: list[Assignment] = []
        frames: list[Arg] = []
        for row in rows:
            if (assignment := _assignment(row, pixels, now_ms)) is not None:
                assignments.append(assignment)
            else:
                job_id, assignment_id, length, *_ = row
                frames += (job_id, assignment_id, 1, length, 0, 1, OUTDATED)
        if frames:
            await self._call("emit", self._worker_id, self._lease_ms, self._hang_ms, "", *frames)
        return assignments

    async def _with_images(self, assignments: list[Assignment]) -> list[Assignment]:
        """Add the images that the queue only refers to.

        If images cannot be read, delete their references, so that the controllers of the jobs store them
        again.
        """
        images = [
            image for each in assignments for image in each.job.images if image.digest not in each.pixels
        ]
        if not images:
            return assignments
        found = await self._images.read(images)
        if missing := {image.digest for image in images} - found.keys():
            await self._call("drop_references", *sorted(missing))
        return [
            dataclasses.replace(each, pixels=_pixels(each.job, {**found, **each.pixels}))
            for each in assignments
        ]

    def _can_accept(self, assignment: Assignment) -> bool:
        """Return False if images are missing, or if the job is still running under an older assignment.

        An older assignment that is still running has been revoked, so the next emit reports the job as
        refused. The worker thus aborts the job before accepting a new assignment.
        """
        job = assignment.job
        if job.job_id in self._held:
            self._lost[job.job_id] = self._held[job.job_id]
            return False
        return all(image.digest in assignment.pixels for image in job.images)

    def _frame(self, assignment: Assignment, event: Event) -> tuple[Arg, ...]:
        number = self._positions.get(assignment.assignment_id, (0, 0))[0] + 1
        self._positions[assignment.assignment_id] = number, event.next_offset
        payload = msgspec.msgpack.encode(event)
        is_final = int(event.final is not None)
        return (
            assignment.job.job_id,
            assignment.assignment_id,
            number,
            event.offset,
            len(event.token_ids),
            is_final,
            payload,
        )

    def _place(self, job_id: str) -> tuple[Arg, ...]:
        """Return the arguments of ``reconcile_worker`` for a job that the worker holds."""
        assignment_id = self._held.get(job_id, "")
        frame, length = self._positions.get(assignment_id, (0, 0))
        return job_id, assignment_id, -1 if job_id in self._emitting else frame, length

    def _release(self, assignments: Iterable[tuple[str, str]]) -> None:
        """Remove assignments, given as (job ID, assignment ID).

        A job that has been pulled again while the reply was in transit keeps its new assignment.
        """
        for job_id, assignment_id in assignments:
            for jobs in (self._held, self._lost):
                if jobs.get(job_id) == assignment_id:
                    del jobs[job_id]
            self._positions.pop(assignment_id, None)
            if assignment_id in self._pulling:
                self._pulling.remove(assignment_id)

    async def _call(self, name: str, *args: Arg) -> Any:
        return await self._retry(lambda: self._link.script(name, *args))

    async def _call_once(self, name: str, *args: Arg) -> Any:
        """Run a script once. Record and raise QueueUnavailable."""
        try:
            return await self._link.script(name, *args)
        except QueueUnavailable as error:
            self._report_unavailable(error)
            raise

    async def _retry(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Repeat ``call`` until Redis is available. Log the first error and the recovery."""
        result = await retry_forever(call, self._report_unavailable)
        if self._is_unavailable:
            self._is_unavailable = False
            _log.info("Redis is available again")
        return result

    def _report_unavailable(self, error: QueueUnavailable) -> None:
        if not self._is_unavailable:
            self._is_unavailable = True
            _log.warning("waiting until Redis is available, with the model loaded: %s", error)


def _parts(events: Sequence[tuple[Assignment, Event]]) -> Iterator[Sequence[tuple[Assignment, Event]]]:
    """Split the events of an emit into one part per script call. If there are none, yield one empty part."""
    yield events[:FIRST_FRAMES]
    for start in range(FIRST_FRAMES, len(events), MAX_FRAMES):
        yield events[start : start + MAX_FRAMES]


def _ids(assignments: Iterable[Assignment]) -> list[tuple[str, str]]:
    return [(each.job.job_id, each.assignment_id) for each in assignments]


def _job_ids(reply: list[bytes]) -> set[str]:
    return {job_id.decode() for job_id in reply}


def _assignment(row: list[Any], pixels: dict[str, bytes], now_ms: int) -> Assignment | None:
    """Decode one job from a pull reply. Return None if this version cannot run it."""
    job_id, assignment_id, _, payload, frames, ends_ms, trace = row
    try:
        job, events = msgspec.msgpack.decode(payload, type=Job), decode_log(frames)
    except ValueError as error:  # a msgspec error or invalid UTF-8
        _log.error("failed to decode job %s: %s", job_id.decode(), error)
        return None
    if job.version > WIRE_VERSION:
        _log.error(
            "job %s failed: it requires wire version %d, but this worker has version %d",
            job_id.decode(),
            job.version,
            WIRE_VERSION,
        )
        return None
    return Assignment(
        job=job,
        assignment_id=assignment_id.decode(),
        token_ids=tuple(token for event in events for token in event.token_ids),
        text="".join(event.text for event in events),
        pixels=_pixels(job, pixels),
        remaining_s=max(ends_ms - now_ms, 0) / 1000,
        trace=trace.decode(),
    )


def _pixels(job: Job, tiles: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the tiles of the job's images that are in ``tiles``."""
    return {image.digest: tiles[image.digest] for image in job.images if image.digest in tiles}
