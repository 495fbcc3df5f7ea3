"""The controller's side of the queue: submit jobs, follow their events, keep the fleet honest.

``JobProducer`` fails fast: when Redis does not answer it raises ``QueueUnavailable`` and the caller says 503.
Only ``follow`` lives through any outage: whatever was delivered to a client wins over what Redis remembers,
so live streams go on even when Redis comes back empty.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any, TypeAlias

import msgspec

from llava_wire.controller_side.delivery_ledger import DeliveryLedger, LiveJob
from llava_wire.controller_side.event_reader import EventReader
from llava_wire.controller_side.limits import DEFAULT_TENANT_LIMITS, QueueLimits, TenantLimits, refusal
from llava_wire.controller_side.queue_status import JobSnapshot, QueuePosition, QueueStats
from llava_wire.controller_side.sent_images import SentImages
from llava_wire.controller_side.submission import submission
from llava_wire.errors import DuplicateJob, QueueUnavailable
from llava_wire.messages.event import ErrorCode, Event, decode_log, error_event
from llava_wire.messages.heartbeat import Heartbeat, read_heartbeats
from llava_wire.messages.job import Job
from llava_wire.redis.connection import UNAVAILABLE, Arg, Link, try_briefly

__all__ = ["JobProducer"]

MAX_CRASHES = 3  # twice in company, which may have been to blame, and then alone
SPARE_S = 3.0  # who has not peeked for so long reads no more
ORPHAN_GRACE_S = 30.0
_outlines = msgspec.msgpack.Decoder(Job)
Pixels: TypeAlias = Mapping[str, bytes]  # by digest
NUM_TRIES = 3
CRASHED = error_event(
    ErrorCode.WORKER_CRASHED,
    "workers stopped each time they ran this request, the last one while it ran nothing else: change it "
    "before trying again",
)


class JobProducer:
    """One controller's connection to the queue. ``follow`` must be running for anything to be delivered."""

    def __init__(
        self,
        url: str,
        *,
        limits: QueueLimits,
        lease_s: float,
        timeout_s: float,
        orphan_grace_s: float,
        check_interval_s: float,
    ) -> None:
        self._limits = limits
        self._lease_ms = int(lease_s * 1000)
        self._orphan_ms = int(orphan_grace_s * 1000)
        self._link = Link(url, timeout_s=timeout_s)
        self._ledger = DeliveryLedger()
        self._follower = EventReader(url, self._link, self._ledger, check_interval_s=check_interval_s)
        self._known_blobs = SentImages()

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        max_queued: int = 1024,
        max_queued_cost: float = 1e7,
        max_tenant_jobs: int = 256,
        max_tenant_cost: float = 1e7,
        max_pixel_bytes: int = 1 << 30,
        lease_s: float = 5.0,
        hang_timeout_s: float = 30.0,
        timeout_s: float = 2.0,
        orphan_grace_s: float = ORPHAN_GRACE_S,
        check_interval_s: float = 5.0,
    ) -> JobProducer:
        """Raises QueueUnavailable if Redis does not answer, within ``timeout_s`` as in every later call.

        ``QueueLimits`` says what the ``max_`` are of. ``lease_s``: what workers are given when nobody has
        reaped for a while; ``hang_timeout_s`` is the workers' own, taken here so that both sides read alike.
        Jobs of a controller unseen for ``orphan_grace_s`` are cancelled. A job quiet for ``check_interval_s``
        is looked after.
        """
        del hang_timeout_s
        producer = cls(
            url,
            limits=QueueLimits(
                max_queued, max_queued_cost, max_tenant_jobs, max_tenant_cost, max_pixel_bytes
            ),
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
        self, job: Job, pixels: Pixels, terms: TenantLimits = DEFAULT_TENANT_LIMITS, trace: str = ""
    ) -> QueuePosition | None:
        """Put a job into the queue; its events come through ``follow``, perhaps before this returns.

        ``pixels`` holds the tiles of every picture of the job, by digest; what Redis has is not sent again.
        ``trace`` goes to its workers beside it. May be repeated with the same job; its place is told once.
        Raises QueueFull, TenantOverLimit, QueueUnavailable, DuplicateJob, and AlreadySubmitted if another
        controller has it or it has ended: then it does not run here (or is cancelled when Redis is back).
        """
        pixels = {image.digest: pixels[image.digest] for image in job.images}
        if not self.is_live(job):
            fresh = LiveJob(job, pixels, ttl_s=job.ttl_s, trace=trace, is_submitted=False)
            self._ledger.live[job.job_id] = fresh
        live = self._ledger.live[job.job_id]
        try:
            answer = await self._submit(live, terms)
        except BaseException:
            self._ledger.silence(job.job_id)
            self._ledger.regrets[job.job_id] = job.tenant, live.nonce
            raise
        if answer[0] != b"ok":
            self._ledger.silence(job.job_id)
            raise refusal(job, self._limits.under(terms), answer)
        live.is_submitted = True
        return QueuePosition.read(*answer[1:]) if len(answer) > 1 else None

    def is_live(self, job: Job) -> bool:
        """Whether this very job is streamed here. Raises DuplicateJob if it is with other contents."""
        live = self._ledger.live.get(job.job_id)
        if live and live.job != job:
            raise DuplicateJob(f"job {job.job_id} is live with other contents")
        return live is not None

    async def cancel(self, job_id: str, *, tenant: str) -> bool:
        """End a job without further events; True if it was live.

        Raises QueueUnavailable; it is then cancelled when Redis is back.
        """
        live = self._ledger.live.get(job_id)
        if job_id in self._ledger.moved or (live and live.job.tenant != tenant):
            return False
        self._ledger.silence(job_id)
        try:
            is_owner_only = int(live is not None)
            return bool(await self._call("cancel", job_id, tenant, self.controller_id, is_owner_only, 0, ""))
        except BaseException:
            self._ledger.regrets[job_id] = tenant, live.nonce if live else ""
            raise

    async def abandon(self, job_id: str, *, tenant: str) -> bool:
        """Cancel a job that this controller reads for nobody; False if somebody has peeked at it lately or
        attached to it meanwhile.

        Raises QueueUnavailable; it may happen all the same, but to no later reader.
        """
        live, spare_ms = self._ledger.live.get(job_id), int(SPARE_S * 1000)
        nonce = live.nonce if live else ""
        if await self._call("cancel", job_id, tenant, self.controller_id, 1, spare_ms, nonce) == 2:
            self._ledger.suspect(job_id)  # an attach whose answer was lost may have left another nonce
            return False
        if live and live.nonce == nonce:  # else it is read here again
            self._ledger.silence(job_id)
        return True

    async def forget(self, job_id: str, *, tenant: str) -> bool:
        """Delete a job and its answer, cancelling it first if it is not over; False if there is none.

        Who streams it, here or elsewhere, gets a final error event. Raises QueueUnavailable.
        """
        return bool(await self._call("forget", job_id, tenant, uuid.uuid4().hex))

    async def peek(
        self, job_id: str, *, tenant: str, num_events: int = 0, offset: int = 0
    ) -> JobSnapshot | None:
        """What follows the first ``num_events`` events, which end at ``offset``; the stream stays put.

        None if the job is unknown or another tenant's. Raises QueueUnavailable.
        """
        if not (answer := await self._call("peek", job_id, tenant, num_events)):
            return None
        state, packed, frames, ends_ms = answer
        outline = _outlines.decode(packed)
        return JobSnapshot(
            state.decode(), outline, decode_log(frames, offset), ends_ms / 1000 - outline.ttl_s
        )

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
        nonce = uuid.uuid4().hex
        answer = await self._call("attach", job_id, tenant, self.controller_id, nonce)
        live = self._ledger.live.get(job_id)
        if answer == [b"cancelled"]:
            self._ledger.suspect(job_id)  # who reads it here is told by the resync
            return None
        if live:
            return self._reattach(live, answer, nonce) if live.job.tenant == tenant else None
        if not answer:
            return None
        state, owner, payload, ttl_ms, frames, blobs = answer
        if state != b"done":
            job = msgspec.msgpack.decode(payload, type=Job)
            pixels = {digest.decode(): pixels for digest, pixels in zip(blobs[::2], blobs[1::2], strict=True)}
            self._ledger.live[job_id] = LiveJob(
                job, pixels, ttl_s=ttl_ms / 1000, owner=owner, frames=tuple(frames), nonce=nonce
            )
            self._ledger.suspect(job_id)  # frames may have come before it was known here
            if job_id in self._ledger.moved:
                self._ledger.moved.remove(job_id)
        return decode_log(frames)

    async def heartbeats(self) -> list[Heartbeat]:
        """The announcements of the live workers. Raises QueueUnavailable."""
        answer = await self._call("survey")
        return read_heartbeats(answer[2])

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

    async def stats(self, heartbeats: Sequence[Heartbeat] | None = None) -> QueueStats:
        """For /metrics and /readyz: models with a worker or a live job here. Raises QueueUnavailable.

        ``heartbeats`` are asked for unless the caller has just done so.
        """
        models = {each.model for each in (await self.heartbeats() if heartbeats is None else heartbeats)}
        models |= {live.job.model for live in self._ledger.live.values()}
        names = sorted(models - {""})
        waiting, running, workers, controllers, dead_letters = await self._call("survey", *names)
        num_waiting, num_live = dict(zip(names, waiting, strict=True)), len(self._ledger.live)
        return QueueStats(num_waiting, running, len(workers), controllers, dead_letters, num_live)

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

    def _reattach(self, live: LiveJob, answer: list[Any], nonce: str) -> list[Event]:
        """The stream is here already; yet another controller may have had it, and we not have heard so."""
        live.nonce = nonce
        if answer and answer[1] > live.owner:
            live.owner = answer[1]
            self._ledger.suspect(live.job.job_id)
        return self._ledger.delivered(live.job.job_id)

    async def _submit(self, live: LiveJob, terms: TenantLimits) -> list[Any]:
        args = (*submission(live, self.controller_id), terms.weight, *astuple(self._limits.under(terms)))
        digests = self._known_blobs.unknown(live.pixels)
        for _ in range(NUM_TRIES):  # Redis may drop pixels between two tries
            pairs = [arg for digest in digests for arg in (digest, live.pixels[digest])]
            answer: list[Any] = await self._call("submit", *args, *pairs)
            if answer[0] != b"pixels":
                self._known_blobs.remember(live.pixels)
                return answer
            digests = [digest.decode() for digest in answer[1]]
        raise QueueUnavailable("redis does not keep the pictures: give it more memory")

    async def _call(self, name: str, *args: Arg) -> Any:
        return await try_briefly(lambda: self._link.script(name, *args))
