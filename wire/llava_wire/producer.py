"""The controller's side of the queue: submit jobs, follow their events, keep the fleet honest.

``JobProducer`` fails fast: when Redis does not answer it raises ``QueueUnavailable`` and the caller says 503.
Only ``follow`` lives through any outage: whatever was delivered to a client wins over what Redis remembers,
so live streams go on even when Redis comes back empty.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from llava_wire.connection import UNAVAILABLE, Arg, Link, try_briefly
from llava_wire.errors import DuplicateJob, QueueFull, QueueUnavailable, TenantOverLimit
from llava_wire.event import ErrorCode, Event
from llava_wire.follower import Follower, submission
from llava_wire.heartbeat import Heartbeat
from llava_wire.job import Job
from llava_wire.ledger import Ledger, LiveJob, decode_log, error_event

__all__ = ["JobProducer", "QueueStats"]

MAX_CRASHES = 3  # an innocent job may be beside a poisonous one twice
ORPHAN_GRACE_S = 30.0
NUM_TRIES = 3
MAX_KNOWN_BLOBS = 4096
CRASHED = error_event(
    ErrorCode.WORKER_CRASHED,
    f"{MAX_CRASHES} workers stopped while they ran this request: change it before trying again",
)


@dataclass(frozen=True)
class QueueStats:
    """A moment of the whole system, but ``num_live`` is of this controller. ``num_waiting`` is by model."""

    num_waiting: Mapping[str, int]
    num_running: int
    num_workers: int
    num_controllers: int
    num_dead_letters: int
    num_live: int


class JobProducer:
    """One controller's connection to the queue. ``follow`` must be running for anything to be delivered."""

    def __init__(
        self,
        url: str,
        *,
        max_queued: int,
        max_tenant_jobs: int,
        max_pixel_bytes: int,
        lease_s: float,
        timeout_s: float,
        orphan_grace_s: float,
        check_interval_s: float,
    ) -> None:
        self._max_queued = max_queued
        self._max_tenant_jobs = max_tenant_jobs
        self._max_pixel_bytes = max_pixel_bytes
        self._lease_ms = int(lease_s * 1000)
        self._orphan_ms = int(orphan_grace_s * 1000)
        self._link = Link(url, timeout_s=timeout_s)
        self._ledger = Ledger()
        self._follower = Follower(url, self._link, self._ledger, check_interval_s=check_interval_s)
        self._known_blobs: OrderedDict[str, None] = OrderedDict()  # sent lately: probably still there

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        max_queued: int = 1024,
        max_tenant_jobs: int = 256,
        max_pixel_bytes: int = 1 << 30,
        lease_s: float = 5.0,
        hang_timeout_s: float = 30.0,
        timeout_s: float = 2.0,
        orphan_grace_s: float = ORPHAN_GRACE_S,
        check_interval_s: float = 5.0,
    ) -> JobProducer:
        """Raises QueueUnavailable if Redis does not answer, within ``timeout_s`` as in every later call.

        ``max_queued`` is by model, ``max_tenant_jobs`` counts waiting and running ones, ``max_pixel_bytes``
        everybody's pictures. ``lease_s``: what workers are given when nobody has reaped for a while;
        ``hang_timeout_s`` is the workers' own, taken here so that both sides read alike. Jobs of a controller
        unseen for ``orphan_grace_s`` are cancelled. A job quiet for ``check_interval_s`` is looked after.
        """
        del hang_timeout_s
        producer = cls(
            url,
            max_queued=max_queued,
            max_tenant_jobs=max_tenant_jobs,
            max_pixel_bytes=max_pixel_bytes,
            lease_s=lease_s,
            timeout_s=timeout_s,
            orphan_grace_s=orphan_grace_s,
            check_interval_s=check_interval_s,
        )
        try:
            await producer.ping()
            await try_briefly(producer._follower.notice_new_server)
        except BaseException:
            await producer.aclose()
            raise
        return producer

    @property
    def controller_id(self) -> str:
        """Random, new with each process, and again each time that Redis has lost memory."""
        return self._ledger.controller_id

    async def submit(
        self, job: Job, pixels: Mapping[str, bytes], *, max_tenant_jobs: int | None = None
    ) -> None:
        """Put a job into the queue; its events come through ``follow``, perhaps before this returns.

        ``pixels`` holds the tiles of every picture of the job, by digest; what Redis has is not sent again.
        ``max_tenant_jobs`` is this tenant's own limit, in place of everybody's.
        May be repeated with the same job. Raises QueueFull, TenantOverLimit, DuplicateJob, QueueUnavailable;
        after any of these the job does not run (or is cancelled as soon as Redis answers again).
        """
        pixels = {image.digest: pixels[image.digest] for image in job.images}
        live = self._ledger.live.get(job.job_id)
        if live is None:
            live = self._ledger.live[job.job_id] = LiveJob(job, pixels, ttl_s=job.ttl_s)
            live.is_submitted = False
        elif live.job != job:
            raise DuplicateJob(f"job {job.job_id} is live with other contents")
        max_tenant_jobs = self._max_tenant_jobs if max_tenant_jobs is None else max_tenant_jobs
        try:
            answer = await self._submit(live, max_tenant_jobs)
        except BaseException:
            self._ledger.silence(job.job_id)
            self._ledger.regrets[job.job_id] = job.tenant
            raise
        if answer[0] != b"ok":
            self._ledger.silence(job.job_id)
            raise self._refusal(job, answer, max_tenant_jobs)
        live.is_submitted = True

    async def cancel(self, job_id: str, *, tenant: str) -> bool:
        """End a job without further events; True if it was live.

        Raises QueueUnavailable; it is then cancelled when Redis is back.
        """
        live = self._ledger.live.get(job_id)
        if job_id in self._ledger.moved or (live and live.job.tenant != tenant):
            return False
        self._ledger.silence(job_id)
        try:
            return bool(await self._call("cancel", job_id, tenant, self.controller_id, int(live is not None)))
        except BaseException:
            self._ledger.regrets[job_id] = tenant
            raise

    def follow(self) -> AsyncIterator[list[tuple[str, Event]]]:
        """Batches of (job id, event) for ever, of all live jobs; each job's events are whole and in order.

        Every job ends in exactly one final event, unless it was cancelled here. Iterate it once at a time.
        """
        return self._follower.follow()

    async def attach(self, job_id: str, *, tenant: str) -> list[Event] | None:
        """Take over a stream: the events so far; the next ones come through ``follow``.

        None if the job is unknown (or cancelled, or ended minutes ago) or another tenant's. A controller that
        still streams the job gets a final error event. Raises QueueUnavailable.
        """
        answer = await self._call("attach", job_id, tenant, self.controller_id)
        live = self._ledger.live.get(job_id)
        if live:
            return self._reattach(live, answer) if live.job.tenant == tenant else None
        if not answer:
            return None
        state, owner, payload, ttl_ms, frames, blobs = answer
        if state != b"done":
            job = msgspec.msgpack.decode(payload, type=Job)
            pixels = {digest.decode(): pixels for digest, pixels in zip(blobs[::2], blobs[1::2], strict=True)}
            self._ledger.live[job_id] = LiveJob(
                job, pixels, ttl_s=ttl_ms / 1000, owner=owner, frames=tuple(frames)
            )
            self._ledger.suspect(job_id)  # frames may have come before it was known here
            if job_id in self._ledger.moved:
                self._ledger.moved.remove(job_id)
        return decode_log(frames)

    async def heartbeats(self) -> list[Heartbeat]:
        """The announcements of the live workers. Raises QueueUnavailable."""
        answer = await self._call("survey")
        return [msgspec.msgpack.decode(heartbeat, type=Heartbeat) for heartbeat in answer[2]]

    async def reap(self) -> int:
        """Put the jobs of dead and hung workers back; how many. Raises QueueUnavailable.

        Call it each second: it is also this controller's own beat, and finds out whether Redis lost memory.
        """
        controller_id, beat = self.controller_id, self._ledger.beat + 1
        payload = msgspec.msgpack.encode(CRASHED)
        num_moved, has_forgotten = await self._call(
            "reap", controller_id, beat, MAX_CRASHES, self._orphan_ms, self._lease_ms, payload
        )
        if controller_id == self.controller_id:
            self._ledger.beat = beat
            if has_forgotten:
                self._ledger.take_new_identity()
        return int(num_moved)

    async def stats(self) -> QueueStats:
        """For /metrics and /readyz: models with a worker or a live job here. Raises QueueUnavailable."""
        models = {heartbeat.model for heartbeat in await self.heartbeats()}
        models |= {live.job.model for live in self._ledger.live.values()}
        names = sorted(models)
        waiting, running, heartbeats, controllers, dead_letters = await self._call("survey", *names)
        return QueueStats(
            num_waiting=dict(zip(names, waiting, strict=True)),
            num_running=running,
            num_workers=len(heartbeats),
            num_controllers=controllers,
            num_dead_letters=dead_letters,
            num_live=len(self._ledger.live),
        )

    async def ping(self) -> None:
        """Raises QueueUnavailable."""
        try:
            await self._link.command("PING")
        except UNAVAILABLE as error:
            raise QueueUnavailable(f"redis does not answer: {error}") from error

    async def aclose(self) -> None:
        """Streams still live are left for other controllers to attach to."""
        if not self._ledger.live:
            with contextlib.suppress(*UNAVAILABLE):
                await self._link.script("disown", self.controller_id)
        await self._follower.aclose()
        await self._link.aclose()

    def _reattach(self, live: LiveJob, answer: list[Any]) -> list[Event]:
        """The stream is here already; yet another controller may have had it, and we not have heard so."""
        if answer and answer[1] > live.owner:
            live.owner = answer[1]
            self._ledger.suspect(live.job.job_id)
        return self._ledger.delivered(live.job.job_id)

    async def _submit(self, live: LiveJob, max_tenant_jobs: int) -> list[Any]:
        args = submission(live, self.controller_id)
        limits = (self._max_queued, max_tenant_jobs, self._max_pixel_bytes)
        digests = [digest for digest in live.pixels if digest not in self._known_blobs]
        for _ in range(NUM_TRIES):  # Redis may drop pixels between two tries
            pairs = [arg for digest in digests for arg in (digest, live.pixels[digest])]
            answer: list[Any] = await self._call("submit", *args[:7], *limits, args[7], *pairs)
            if answer[0] != b"pixels":
                self._remember_blobs(live.pixels)
                return answer
            digests = [digest.decode() for digest in answer[1]]
        raise QueueUnavailable("redis does not keep the pictures: give it more memory")

    def _remember_blobs(self, digests: Mapping[str, bytes]) -> None:
        for digest in digests:
            self._known_blobs[digest] = None
            self._known_blobs.move_to_end(digest)
        while len(self._known_blobs) > MAX_KNOWN_BLOBS:
            self._known_blobs.popitem(last=False)

    def _refusal(
        self, job: Job, answer: list[Any], max_tenant_jobs: int
    ) -> DuplicateJob | QueueFull | TenantOverLimit:
        if answer[0] == b"duplicate":
            return DuplicateJob(f"job {job.job_id} is known with other contents")
        if answer[0] == b"tenant":
            message = f"{answer[1]} requests of this key are waiting or running; the limit is"
            soon = self._ledger.seconds_until(1)
            return TenantOverLimit(f"{message} {max_tenant_jobs}: wait for one to end", retry_after_s=soon)
        if answer[0] == b"bytes":
            message = (
                f"pictures of other requests take {answer[1]} bytes of {self._max_pixel_bytes}: try later"
            )
            return QueueFull(message, retry_after_s=self._ledger.seconds_until(1))
        message = f"{answer[1]} requests wait for {job.model}; the limit is {self._max_queued}: try later"
        return QueueFull(message, retry_after_s=self._ledger.seconds_until(answer[1]))

    async def _call(self, name: str, *args: Arg) -> Any:
        return await try_briefly(lambda: self._link.script(name, *args))
