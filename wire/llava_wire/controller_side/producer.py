"""The controller's side of the queue: submit jobs, follow their events, requeue the jobs of dead workers.

``JobProducer`` fails fast: when Redis does not answer it raises ``QueueUnavailable`` and the caller returns a
503. Only ``follow`` continues through an outage: what was delivered to a client wins over what Redis
remembers, so live streams go on even when Redis comes back empty.
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
from llava_wire.controller_side.limits import DEFAULT_TENANT_LIMITS, QueueLimits, TenantLimits, submit_error
from llava_wire.controller_side.queue_status import JobSnapshot, QueuePosition, QueueStats
from llava_wire.controller_side.sent_images import SentImages
from llava_wire.errors import DuplicateJob, QueueUnavailable
from llava_wire.messages.event import ErrorCode, Event, decode_log, error_event
from llava_wire.messages.heartbeat import Heartbeat, read_heartbeats
from llava_wire.messages.job import Job
from llava_wire.redis.connection import UNAVAILABLE, Arg, Link, retry_briefly

__all__ = ["JobProducer"]

MAX_CRASHES = 3  # twice concurrently with other jobs, which may be to blame, and then alone
RECENT_READ_S = 3.0  # a job that another reader has read so recently is not cancelled as unread
ORPHAN_GRACE_S = 30.0
NUM_TRIES = 3
CRASHED = error_event(
    ErrorCode.WORKER_CRASHED,
    "workers stopped each time they ran this request, the last one while it ran nothing else: change it "
    "before trying again",
)
Pixels: TypeAlias = Mapping[str, bytes]  # by digest
_job_decoder = msgspec.msgpack.Decoder(Job)


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
        self._reader = EventReader(url, self._link, self._ledger, check_interval_s=check_interval_s)
        self._sent_images = SentImages()

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
        timeout_s: float = 2.0,
        orphan_grace_s: float = ORPHAN_GRACE_S,
        check_interval_s: float = 5.0,
    ) -> JobProducer:
        """Raises QueueUnavailable if Redis does not answer, within ``timeout_s`` as in every later call.

        ``QueueLimits`` documents the ``max_`` limits. ``lease_s`` is the new lease of each worker after a
        time in which no controller called ``reap``. Jobs of a controller that sent no beat for
        ``orphan_grace_s`` are cancelled. A job without events for ``check_interval_s`` is compared with
        Redis.
        """
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
            await retry_briefly(producer._reader.identify_server)
        except BaseException:
            await producer.aclose()
            raise
        return producer

    @property
    def controller_id(self) -> str:
        """Random, new with each process, and again each time that Redis has lost memory."""
        return self._ledger.controller_id

    async def submit(
        self,
        job: Job,
        pixels: Pixels,
        tenant_limits: TenantLimits = DEFAULT_TENANT_LIMITS,
        trace: str = "",
    ) -> QueuePosition | None:
        """Put a job into the queue; its events come through ``follow``, perhaps before this returns.

        ``pixels`` holds the tiles of every image of the job, by digest; what Redis has is not sent again.
        ``trace`` is passed to its workers. The call may be repeated with the same job; the position is
        returned once. Raises QueueFull, TenantOverLimit, QueueUnavailable, DuplicateJob, and AlreadySubmitted
        if another controller has the job or it has ended. After an error the job does not run here (or is
        cancelled when Redis is back).
        """
        pixels = {image.digest: pixels[image.digest] for image in job.images}
        live = self._find(job)
        if live is None:
            live = LiveJob(job, pixels, ttl_s=job.ttl_s, trace=trace, is_submitted=False)
            self._ledger.track(live)
        limits = self._limits.for_tenant(tenant_limits)
        try:
            reply = await self._submit(live, tenant_limits.weight, limits)
        except BaseException:
            self._ledger.drop(job.job_id)
            self._ledger.cancel_later(job.job_id, job.tenant, live.nonce)
            raise
        if reply[0] != b"ok":
            self._ledger.drop(job.job_id)
            raise submit_error(job, limits, reply)
        self._ledger.confirm(live)
        return QueuePosition.from_reply(*reply[1:]) if len(reply) > 1 else None

    def is_live(self, job: Job) -> bool:
        """Whether this very job is streamed here. Raises DuplicateJob if it is with other contents."""
        return self._find(job) is not None

    async def cancel(self, job_id: str, *, tenant: str) -> bool:
        """End a job without further events; True if it was live.

        Raises QueueUnavailable; it is then cancelled when Redis is back.
        """
        live = self._ledger.find(job_id)
        if self._ledger.was_taken_over(job_id) or (live and live.job.tenant != tenant):
            return False
        self._ledger.drop(job_id)
        try:
            is_owner_only = int(live is not None)
            return bool(await self._call("cancel", job_id, tenant, self.controller_id, is_owner_only, 0, ""))
        except BaseException:
            self._ledger.cancel_later(job_id, tenant, live.nonce if live else "")
            raise

    async def cancel_unread(self, job_id: str, *, tenant: str) -> bool:
        """Cancel a job that no client of this controller reads; True if it is not live any more.

        False if another reader took a snapshot of it within ``RECENT_READ_S`` or attached to it meanwhile.
        Raises QueueUnavailable; it may then be cancelled all the same, but not for a later reader.
        """
        live, recent_ms = self._ledger.find(job_id), int(RECENT_READ_S * 1000)
        nonce = live.nonce if live else ""
        if await self._call("cancel", job_id, tenant, self.controller_id, 1, recent_ms, nonce) == 2:
            self._ledger.request_resync(job_id)  # an attach whose reply was lost may have left another nonce
            return False
        if live and live.nonce == nonce:  # else it is read here again
            self._ledger.drop(job_id)
        return True

    async def delete(self, job_id: str, *, tenant: str) -> bool:
        """Delete a job and its output, cancelling it first if it has not ended; False if there is none.

        Its stream, on any controller, gets a final error event. Raises QueueUnavailable.
        """
        return bool(await self._call("delete", job_id, tenant, uuid.uuid4().hex))

    async def snapshot(
        self, job_id: str, *, tenant: str, num_events: int = 0, offset: int = 0
    ) -> JobSnapshot | None:
        """Return the state of a job and the events after the first ``num_events``, which end at ``offset``.

        The stream stays where it is. None if the job is unknown or another tenant's. Raises QueueUnavailable.
        """
        if not (reply := await self._call("snapshot", job_id, tenant, num_events)):
            return None
        state, packed, frames, ends_ms = reply
        outline = _job_decoder.decode(packed)
        return JobSnapshot(
            state.decode(), outline, decode_log(frames, offset), ends_ms / 1000 - outline.ttl_s
        )

    def follow(self) -> AsyncIterator[list[tuple[str, Event]]]:
        """Yield batches of (job ID, event) of all live jobs, forever. Iterate it once at a time.

        The events of a job are complete and in order. Every job ends in exactly one final event, unless it
        was cancelled here.
        """
        return self._reader.follow()

    async def attach(self, job_id: str, *, tenant: str) -> list[Event] | None:
        """Take over a stream: return the events so far; the next ones come through ``follow``.

        None if the job is unknown (or cancelled, or ended minutes ago) or another tenant's. A controller that
        still streams the job gets a final error event. Raises QueueUnavailable.
        """
        nonce = uuid.uuid4().hex
        reply = await self._call("attach", job_id, tenant, self.controller_id, nonce)
        live = self._ledger.find(job_id)
        if reply == [b"cancelled"]:
            self._ledger.request_resync(job_id)  # which ends the stream, if it is read here
            return None
        if live:  # streamed here already; another controller may have had it meanwhile
            epoch = reply[1] if reply else 0
            return self._ledger.reattach(live, nonce, epoch) if live.job.tenant == tenant else None
        if not reply:
            return None
        state, epoch, payload, ttl_ms, frames, blobs = reply
        if state != b"done":
            pixels = {digest.decode(): pixels for digest, pixels in zip(blobs[::2], blobs[1::2], strict=True)}
            job, ttl_s = _job_decoder.decode(payload), ttl_ms / 1000
            live = LiveJob(job, pixels, ttl_s=ttl_s, epoch=epoch, frames=tuple(frames), nonce=nonce)
            self._ledger.track(live)
            self._ledger.confirm(live)
            self._ledger.request_resync(job_id)  # frames may have come before it was known here
        return decode_log(frames)

    async def heartbeats(self) -> list[Heartbeat]:
        """The heartbeats of the live workers. Raises QueueUnavailable."""
        reply = await self._call("stats")
        return read_heartbeats(reply[2])

    async def reap(self) -> int:
        """Requeue the jobs of dead and hung workers; return how many. Raises QueueUnavailable.

        Call it each second: it is also this controller's own beat, and detects that Redis lost memory.
        """
        controller_id, beat = self.controller_id, self._ledger.next_beat
        payload = msgspec.msgpack.encode(CRASHED)
        num_requeued, has_lost_memory = await self._call(
            "reap", controller_id, beat, MAX_CRASHES, self._orphan_ms, self._lease_ms, payload
        )
        self._ledger.record_beat(controller_id, beat, has_lost_memory=bool(has_lost_memory))
        return int(num_requeued)

    async def stats(self, heartbeats: Sequence[Heartbeat] | None = None) -> QueueStats:
        """Statistics of the models with a worker or a live job here. Raises QueueUnavailable.

        ``heartbeats`` are read unless the caller has just done so.
        """
        if heartbeats is None:
            heartbeats = await self.heartbeats()
        models = sorted(({heartbeat.model for heartbeat in heartbeats} | self._ledger.models) - {""})
        waiting, running, workers, controllers, dead_letters = await self._call("stats", *models)
        num_waiting, num_live = dict(zip(models, waiting, strict=True)), self._ledger.num_live
        return QueueStats(num_waiting, running, len(workers), controllers, dead_letters, num_live)

    async def ping(self) -> None:
        """Raises QueueUnavailable."""
        try:
            await self._link.command("PING")
        except UNAVAILABLE as error:
            raise QueueUnavailable(f"redis does not answer: {error}") from error

    async def aclose(self) -> None:
        """Close the connections. Streams still live are left for other controllers to attach to."""
        if not self._ledger.num_live:
            with contextlib.suppress(*UNAVAILABLE):
                await self._link.script("remove_controller", self.controller_id)
        await self._reader.aclose()
        await self._link.aclose()

    def _find(self, job: Job) -> LiveJob | None:
        live = self._ledger.find(job.job_id)
        if live and live.job != job:
            raise DuplicateJob(f"job {job.job_id} is live with other contents")
        return live

    async def _submit(self, live: LiveJob, weight: float, limits: QueueLimits) -> list[Any]:
        args = (*live.creation_args(self.controller_id), weight, *astuple(limits))
        digests = self._sent_images.unknown(live.pixels)
        for _ in range(NUM_TRIES):  # Redis may drop images between two tries
            pairs = [arg for digest in digests for arg in (digest, live.pixels[digest])]
            reply: list[Any] = await self._call("submit", *args, *pairs)
            if reply[0] != b"pixels":
                self._sent_images.remember(live.pixels)
                return reply
            digests = [digest.decode() for digest in reply[1]]
        raise QueueUnavailable("redis does not keep the pictures: give it more memory")

    async def _call(self, name: str, *args: Arg) -> Any:
        return await retry_briefly(lambda: self._link.script(name, *args))
