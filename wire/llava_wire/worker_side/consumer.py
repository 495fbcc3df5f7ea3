"""The worker's side of the queue: pull jobs, emit their events, show progress, hand back.

``JobConsumer`` never gives up: once connected, each call repeats its script, with the same arguments, until
Redis answers. The scripts make that safe: nonces in ``pull``, frame numbers in ``emit``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from llava_wire.errors import QueueUnavailable
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.commands import CommandStatus, IssuedCommand, ModelCommand
from llava_wire.messages.event import ErrorCode, Event, decode_log, error_event
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.job import WIRE_VERSION, Job
from llava_wire.redis.connection import UNAVAILABLE, Arg, Link, try_for_ever
from llava_wire.redis.keys import wake_key

__all__ = ["JobConsumer"]

COMMAND_TIMEOUT_S = 5.0
WAIT_S = 1  # how long a pull waits for work; also what a lost wake-up costs
OUTDATED = msgspec.msgpack.encode(
    error_event(
        ErrorCode.WORKER_OUTDATED,
        "the worker that took this request is older than the server: try again when its update is over",
    )
)
# Of an emit's first script: few, so that controllers write these tokens while the others are on the way.
FIRST_FRAMES = 32
MAX_FRAMES = 500  # of each script after it; Lua unpacks them on its stack

_log = logging.getLogger(__name__)


class JobConsumer:
    """One worker's connection to the queue. ``pull`` and ``emit`` are each called by one task at a time."""

    def __init__(self, url: str, heartbeat: Heartbeat, *, lease_s: float, hang_timeout_s: float) -> None:
        self.has_guest = False  # as the last emit told
        self._heartbeat = heartbeat
        self._worker_id = heartbeat.worker_id
        self._lease_ms = int(lease_s * 1000)
        self._hang_ms = int(hang_timeout_s * 1000)
        self._link = Link(url, timeout_s=COMMAND_TIMEOUT_S)
        self._waiter = Link(url, timeout_s=WAIT_S + 3, max_connections=1)
        self._held: dict[str, str] = {}  # job -> assignment
        self._frames: dict[str, int] = {}  # assignment -> number of its last frame
        self._pulling: list[str] = []  # nonces of the pull under way, then what it brought: not yet in "held"
        self._fenced: set[str] = set()  # refused, and not yet told by emit
        self._last_order = ""  # the last that beat gave out

    @classmethod
    async def connect(
        cls, url: str, heartbeat: Heartbeat, *, lease_s: float = 5.0, hang_timeout_s: float = 30.0
    ) -> JobConsumer:
        """Announces the worker. Raises QueueUnavailable if Redis does not answer this first time."""
        consumer = cls(url, heartbeat, lease_s=lease_s, hang_timeout_s=hang_timeout_s)
        try:
            await consumer._announce()
        except UNAVAILABLE as error:
            await consumer.aclose()
            raise QueueUnavailable(f"redis does not answer: {error}") from error
        return consumer

    async def pull(self, max_jobs: int) -> list[Assignment]:
        """Up to ``max_jobs`` jobs in fair order; waits about a second for the first, then answers []."""
        assignments = await self._pull(max_jobs)
        if not assignments and await self._has_work():
            assignments = await self._pull(max_jobs)
        return assignments

    async def pull_guest(self) -> list[Assignment]:
        """For a worker without a free place: the first job in line of a tenant of whom this worker holds
        nothing. Waits for nothing."""
        return await self._pull(1, is_for_guest=True)

    async def emit(
        self,
        events: Sequence[tuple[Assignment, Event]],
        *,
        expect_s: float = 0.0,
        wants_guest: bool = False,
    ) -> set[str]:
        """Append events to their jobs' logs; the ids of refused jobs, which the worker must abort.

        Call it once an engine step, and at least once a second while jobs are held, be it with []: it is the
        sign of progress. ``expect_s`` announces how much longer than usual the next step will take. An event
        must start where the last one ended. With ``wants_guest``, ``has_guest`` tells afterwards whether it
        is worth while to ``pull_guest``.
        """
        hang_ms = self._hang_ms + int(expect_s * 1000)
        refused, self._fenced = self._fenced, set()
        model = self._heartbeat.model if wants_guest else ""
        for part in _parts(events):
            args = [arg for assignment, event in part for arg in self._frame(assignment, event)]
            refused |= _ids(await self._call("emit", self._worker_id, self._lease_ms, hang_ms, model, *args))
        self.has_guest = "" in refused
        refused.discard("")
        ended = [each for each, event in events if event.final or each.job.job_id in refused]
        self._forget(refused.union(each.job.job_id for each in ended))
        for each in ended:
            self._frames.pop(each.assignment_id, None)
        return refused

    async def give_back(self, assignments: Sequence[Assignment]) -> None:
        """Jobs return to their place in the queue, without counting as crashed."""
        pairs = [arg for each in assignments for arg in (each.job.job_id, each.assignment_id)]
        await self._call("give_back", self._worker_id, *pairs)
        for each in assignments:
            if self._held.get(each.job.job_id) == each.assignment_id:
                self._forget([each.job.job_id])

    async def beat(self, heartbeat: Heartbeat | None = None) -> IssuedCommand | None:
        """Renew the process lease and the announcement, which changes if a ``heartbeat`` is given.

        An operator's order is answered once, and not while the one before is running; every heartbeat has the
        last ``report``.
        """
        report = self._heartbeat.order
        self._heartbeat = msgspec.structs.replace(heartbeat or self._heartbeat, order=report)
        answer = await try_for_ever(self._announce)
        if not answer or (self._heartbeat.order and not self._heartbeat.order.is_settled):
            return None
        order_id, what = answer
        if order_id.decode() == self._last_order:
            return None
        self._last_order = order_id.decode()
        return IssuedCommand(self._last_order, msgspec.msgpack.decode(what, type=ModelCommand))

    def report(self, report: CommandStatus) -> None:
        """What the heartbeats say from now on of the last order."""
        self._heartbeat = msgspec.structs.replace(self._heartbeat, order=report)

    async def reconcile(self, held: Iterable[str]) -> set[str]:
        """Compare what we hold with what Redis thinks: the held jobs that are not ours any more.

        Jobs that Redis assigns to us and that we do not hold go back to the queue.
        """
        pairs = [arg for job_id in held for arg in (job_id, self._held.get(job_id, ""))]
        lost = _ids(
            await self._call("reconcile", self._worker_id, len(self._pulling), *self._pulling, *pairs)
        )
        self._forget(lost)
        return lost

    async def leave(self) -> None:
        """The worker is gone for good: what it holds goes back, its announcement is removed."""
        await self._call("leave", self._worker_id)

    async def aclose(self) -> None:
        await self._waiter.aclose()
        await self._link.aclose()

    async def _announce(self) -> Any:
        packed, report = msgspec.msgpack.encode(self._heartbeat), self._heartbeat.order
        settled = report.order_id if report and report.is_settled else ""
        return await self._link.script("beat", self._worker_id, self._lease_ms, packed, settled)

    async def _pull(self, max_jobs: int, *, is_for_guest: bool = False) -> list[Assignment]:
        nonces = self._pulling = [uuid.uuid4().hex for _ in range(max_jobs)]
        try:
            jobs, blobs, now_ms = await self._call(
                "pull",
                self._worker_id,
                self._heartbeat.model,
                self._lease_ms,
                self._hang_ms,
                int(is_for_guest),
                *nonces,
            )
        finally:
            self._pulling = []
        pixels = {digest.decode(): tiles for digest, tiles in zip(blobs[::2], blobs[1::2], strict=True)}
        assignments = await self._readable(jobs, pixels, now_ms)
        unfit = [each for each in assignments if not self._fits(each)]
        if unfit:
            await self.give_back(unfit)
        taken = [each for each in assignments if each not in unfit]
        for each in taken:
            self._held[each.job.job_id] = each.assignment_id
        self._pulling = [each.assignment_id for each in taken]
        return taken

    async def _readable(
        self, answers: list[list[Any]], pixels: dict[str, bytes], now_ms: int
    ) -> list[Assignment]:
        """What this version understands; jobs of a newer one end, so that they stop no worker."""
        assignments: list[Assignment] = []
        frames: list[Arg] = []
        for answer in answers:
            if (assignment := _assignment(answer, pixels, now_ms)) is not None:
                assignments.append(assignment)
            else:
                job_id, assignment_id, length, *_ = answer
                frames += (job_id, assignment_id, 1, length, 0, 1, OUTDATED)
        if frames:
            await self._call("emit", self._worker_id, self._lease_ms, self._hang_ms, "", *frames)
        return assignments

    def _fits(self, assignment: Assignment) -> bool:
        """False if the job's pixels are gone, or if the worker still runs it under an older assignment.

        That one was taken from it: it must hear so, and drop the job, before it takes it anew.
        """
        job = assignment.job
        if job.job_id in self._held:
            self._fenced.add(job.job_id)
            return False
        return all(image.digest in assignment.pixels for image in job.images)

    async def _has_work(self) -> bool:
        """Waits for it; False after ``WAIT_S``."""
        try:
            return bool(await self._waiter.command("BLPOP", wake_key(self._heartbeat.model), WAIT_S))
        except UNAVAILABLE:
            return True  # nobody knows: the pull that follows waits for Redis

    def _frame(self, assignment: Assignment, event: Event) -> tuple[Arg, ...]:
        number = self._frames.get(assignment.assignment_id, 0) + 1
        self._frames[assignment.assignment_id] = number
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

    def _forget(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            assignment_id = self._held.pop(job_id, "")
            self._frames.pop(assignment_id, None)
            if assignment_id in self._pulling:
                self._pulling.remove(assignment_id)

    async def _call(self, name: str, *args: Arg) -> Any:
        return await try_for_ever(lambda: self._link.script(name, *args))


def _parts(events: Sequence[tuple[Assignment, Event]]) -> Iterator[Sequence[tuple[Assignment, Event]]]:
    """Of one emit; at least one, which may be empty."""
    yield events[:FIRST_FRAMES]
    for start in range(FIRST_FRAMES, len(events), MAX_FRAMES):
        yield events[start : start + MAX_FRAMES]


def _ids(answer: list[bytes]) -> set[str]:
    return {job_id.decode() for job_id in answer}


def _assignment(answer: list[Any], pixels: dict[str, bytes], now_ms: int) -> Assignment | None:
    """None if the job is of a version that this one must not run."""
    job_id, assignment_id, _, payload, frames, ends_ms, trace = answer
    try:
        job, events = msgspec.msgpack.decode(payload, type=Job), decode_log(frames)
    except ValueError as error:  # msgspec's, and that of text which is no UTF-8
        _log.error("job %s cannot be read and ends: %s", job_id.decode(), error)
        return None
    if job.version > WIRE_VERSION:
        _log.error("job %s is of version %d and ends: we are %d", job_id.decode(), job.version, WIRE_VERSION)
        return None
    return Assignment(
        job=job,
        assignment_id=assignment_id.decode(),
        token_ids=tuple(token for event in events for token in event.token_ids),
        text="".join(event.text for event in events),
        pixels={image.digest: pixels[image.digest] for image in job.images if image.digest in pixels},
        left_s=max(ends_ms - now_ms, 0) / 1000,
        trace=trace.decode(),
    )
