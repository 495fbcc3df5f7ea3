"""The controller side of the queue: submit jobs, follow their events and requeue the jobs of dead workers.

``JobProducer`` fails fast: if Redis is unavailable, it raises ``QueueUnavailable`` and the caller returns a
503. Only ``follow`` waits until Redis is available again. The events delivered to a client take precedence
over the state in Redis, so live streams continue even if Redis restarts without its data.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any, TypeAlias

import msgspec

from llava_wire.controller_side.delivery_ledger import RECENT_READ_S, DeliveryLedger, LiveJob
from llava_wire.controller_side.event_reader import EventReader
from llava_wire.controller_side.image_uploader import ImageUploader
from llava_wire.controller_side.limits import DEFAULT_TENANT_LIMITS, QueueLimits, TenantLimits, submit_error
from llava_wire.controller_side.query_results import CancelReply, JobSnapshot, QueuePosition, QueueStats
from llava_wire.controller_side.sent_images import SentImages
from llava_wire.errors import DuplicateJob, QueueUnavailable
from llava_wire.image_stores.location import open_image_store
from llava_wire.messages.event import ErrorCode, Event, decode_log, error_event
from llava_wire.messages.heartbeat import Heartbeat, read_heartbeats
from llava_wire.messages.job import Job
from llava_wire.redis.connection import Arg, Link, retry_briefly
from llava_wire.redis.keys import PREFIX

__all__ = ["JobProducer"]

MAX_CRASHES = 3  # two crashes on workers shared with other jobs, and one crash while running alone
ORPHAN_GRACE_S = 30.0
NUM_TRIES = 3
_NO_EVICTION = "noeviction"
CRASHED = error_event(
    ErrorCode.WORKER_CRASHED,
    "Every worker that ran this request crashed. The last worker was running only this request. Change the "
    "request before sending it again.",
)
Pixels: TypeAlias = Mapping[str, bytes]  # image tiles, keyed by digest
_job_decoder = msgspec.msgpack.Decoder(Job)


class JobProducer:
    """A controller's connection to the queue. Events are delivered only while ``follow`` is running.

    All methods that access Redis, except for ``follow``, raise QueueUnavailable if it is unavailable.
    """

    def __init__(
        self,
        url: str,
        *,
        max_queued: int = 1024,
        max_queued_cost: float = 1e7,
        max_tenant_jobs: int = 256,
        max_tenant_cost: float = 1e7,
        max_pixel_bytes: int = 1 << 30,
        max_job_bytes: int = 1 << 30,
        lease_s: float = 5.0,
        timeout_s: float = 2.0,
        orphan_grace_s: float = ORPHAN_GRACE_S,
        check_interval_s: float = 5.0,
        num_shards: int = 1,
        prefix: str = PREFIX,
        image_store: str = "",
    ) -> None:
        """Create a producer without connecting.

        Each call fails if Redis does not respond within ``timeout_s``. The ``max_*`` limits are documented in
        ``QueueLimits`` and apply to a queue with ``num_shards`` shards, of which ``prefix`` selects one.
        If no controller has called ``reap`` for a while, the next call renews the leases of all workers for
        ``lease_s``. If a controller has not called ``reap`` for ``orphan_grace_s``, its jobs are stopped,
        except for background jobs. If a job receives no events for ``check_interval_s``, or longer if the
        controller has thousands of jobs, its state is checked against Redis. ``image_store`` is the URL of a
        separate store for images (see ``image_stores``).
        """
        self._limits = QueueLimits(
            max_queued, max_queued_cost, max_tenant_jobs, max_tenant_cost, max_pixel_bytes, max_job_bytes
        )
        self._num_shards = num_shards
        self._lease_ms = int(lease_s * 1000)
        self._orphan_ms = int(orphan_grace_s * 1000)
        self._link = Link(url, timeout_s=timeout_s, prefix=prefix)
        self._ledger = DeliveryLedger()
        store = open_image_store(image_store, prefix)
        self._uploader = None if store is None else ImageUploader(self._link, store)
        self._reader = EventReader(
            url, self._link, self._ledger, self._uploader, check_interval_s=check_interval_s
        )
        self._sent_images = SentImages()

    @classmethod
    async def connect(cls, url: str, **options: Any) -> JobProducer:
        """Create a producer and connect it. Raise QueueUnavailable if Redis does not respond."""
        producer = cls(url, **options)
        try:
            await producer.check_connection()
        except BaseException:
            await producer.aclose()
            raise
        return producer

    @property
    def controller_id(self) -> str:
        """Return the random ID of this controller. The ID changes each time Redis loses data."""
        return self._ledger.controller_id

    async def submit(
        self,
        job: Job,
        pixels: Pixels,
        tenant_limits: TenantLimits = DEFAULT_TENANT_LIMITS,
        trace: str = "",
    ) -> QueuePosition | None:
        """Add a job to the queue. ``follow`` yields its events, possibly before this call returns.

        ``pixels`` must contain the tiles of every image in the job. Images that are already in Redis are not
        sent again. ``trace`` is the W3C traceparent, which is passed to the worker. The call can be repeated
        with the same job, but only the first call returns the queue position.

        Raise QueueFull, TenantOverLimit, QueueUnavailable or DuplicateJob. Raise AlreadySubmitted if another
        controller owns the job or if the job has ended. If Redis has accepted the job but this call fails,
        the job is cancelled once Redis is available and no other connection is reading it.
        """
        pixels = {image.digest: pixels[image.digest] for image in job.images}
        live = self._find(job)
        if live is None:
            live = LiveJob(job, pixels, ttl_s=job.ttl_s, trace=trace, is_submitted=False)
            self._ledger.track(live)
        limits = self._limits.for_tenant(tenant_limits).per_shard(self._num_shards)
        try:
            reply = await self._submit(live, tenant_limits.weight, limits)
        except BaseException:
            self._ledger.drop(job.job_id)
            self._ledger.cancel_later(job.job_id, job.tenant, live.nonce, spares_readers=True)
            raise
        if reply[0] != b"ok":
            self._ledger.drop(job.job_id)
            raise submit_error(job, limits, reply)
        self._ledger.confirm(live)
        return QueuePosition.from_reply(*reply[1:]) if len(reply) > 1 else None

    @property
    def follow_error(self) -> QueueUnavailable | None:
        """The error because of which ``follow`` is waiting, or None while it receives events."""
        return self._reader.error

    @property
    def num_redis_errors(self) -> Counter[str]:
        """The number of errors so far, keyed by kind. See ``Link.num_errors``."""
        return self._link.num_errors + self._reader.num_redis_errors

    @property
    def num_image_store_errors(self) -> Counter[str]:
        """The number of errors of a separate image store so far, keyed by kind."""
        return Counter() if self._uploader is None else self._uploader.store.num_errors

    async def remove_expired_images(self) -> None:
        """Remove the expired images in a separate image store. Raises ImageStoreUnavailable."""
        if self._uploader is not None:
            await self._uploader.store.remove_expired()

    def is_live(self, job: Job) -> bool:
        """Return whether this controller is streaming the job.

        Raise DuplicateJob if it is streaming a job with the same ID but different contents.
        """
        return self._find(job) is not None

    def delivered_events(self, job_id: str) -> list[Event] | None:
        """Return the events that ``follow`` has yielded for a job, or None if the job is not live."""
        live = self._ledger.find(job_id)
        return None if live is None else self._ledger.delivered_events(live)

    async def cancel(self, job_id: str, *, tenant: str) -> bool:
        """Cancel a job without emitting further events. Return whether the job was live.

        If the call raises QueueUnavailable, the job is cancelled once Redis is available.
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
        """Cancel a job that no client of this controller is reading. Return whether the job has ended.

        Return False if another reader has attached to the job or has taken a snapshot within the last
        ``RECENT_READ_S`` seconds. If the call raises QueueUnavailable, the job may have been cancelled
        anyway, unless another reader has attached to it.
        """
        live, recent_ms = self._ledger.find(job_id), int(RECENT_READ_S * 1000)
        nonce = live.nonce if live else ""
        reply = await self._call("cancel", job_id, tenant, self.controller_id, 1, recent_ms, nonce)
        if reply in (CancelReply.OTHER_NONCE, CancelReply.HAS_READER):
            self._ledger.request_resync(job_id)  # an attach whose reply was lost may have set another nonce
            return False
        if live and live.nonce == nonce:  # else a new reader has attached on this controller
            self._ledger.drop(job_id)
        return True

    async def delete(self, job_id: str, *, tenant: str) -> bool:
        """Delete a job and its output. Return False if the tenant has no such job.

        An unfinished job is cancelled first. The controller that is streaming the job then ends the stream
        with an error event.
        """
        return bool(await self._call("delete", job_id, tenant, uuid.uuid4().hex))

    async def snapshot(
        self, job_id: str, *, tenant: str, num_events: int = 0, offset: int = 0, is_read: bool = True
    ) -> JobSnapshot | None:
        """Return the state of a job, and all its events except for the first ``num_events``.

        ``offset`` must be the number of tokens in the skipped events. The call does not take over the stream.
        If ``is_read`` is true, the call counts as a client that reads the job (see ``cancel_unread``).
        Return None if the job does not exist or belongs to another tenant.
        """
        if not (reply := await self._call("read_job", job_id, tenant, num_events, int(is_read))):
            return None
        state, packed, frames, ends_ms, digest = reply
        outline = _job_decoder.decode(packed)
        return JobSnapshot(
            state.decode(),
            outline,
            decode_log(frames, offset),
            ends_ms / 1000 - outline.ttl_s,
            model_digest=digest.decode(),
        )

    def follow(self) -> AsyncIterator[list[tuple[str, Event]]]:
        """Yield batches of (job ID, event) pairs for all live jobs, forever. Use only one iterator at a time.

        The events of each job are delivered in order, without gaps or duplicates. Every job ends with exactly
        one final event, unless it was cancelled through this object.
        """
        return self._reader.follow()

    async def attach(self, job_id: str, *, tenant: str) -> list[Event] | None:
        """Take over a stream and return its existing events. ``follow`` yields subsequent events.

        Return None if the job was cancelled, has expired, does not exist, or belongs to another tenant. If
        another controller is still streaming the job, that controller ends its stream with an error event.
        """
        nonce = uuid.uuid4().hex
        try:
            reply = await self._call("take_over_job", job_id, tenant, self.controller_id, nonce)
        except BaseException:
            self._ledger.distrust_stream(job_id)  # Redis may route the events to this controller from now on
            raise
        live = self._ledger.find(job_id)
        if reply == [b"cancelled"]:
            self._ledger.request_resync(job_id)  # ends the stream if it is on this controller
            return None
        if live:  # already on this controller, but another controller may have owned it in the meantime
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
            self._ledger.request_resync(job_id)  # frames that arrived before track() were dropped
        return decode_log(frames)

    async def heartbeats(self) -> list[Heartbeat]:
        """Return the heartbeats of the live workers."""
        return read_heartbeats(await self._call("heartbeats"))

    async def reap(self) -> int:
        """Requeue the jobs of dead and hung workers. Return the number of requeued jobs.

        Must be called once per second. Each call also serves as a heartbeat of this controller and detects
        data loss in Redis.
        """
        controller_id, beat = self.controller_id, self._ledger.next_beat
        payload = msgspec.msgpack.encode(CRASHED)
        num_requeued, has_lost_memory = await self._call(
            "reap_workers", controller_id, beat, MAX_CRASHES, self._orphan_ms, self._lease_ms, payload
        )
        self._ledger.record_beat(controller_id, beat, has_lost_memory=bool(has_lost_memory))
        return int(num_requeued)

    async def stats(
        self, heartbeats: Sequence[Heartbeat] | None = None, *, models: Iterable[str] = ()
    ) -> QueueStats:
        """Return statistics for ``models``, and models with a worker or a live job on this controller.

        If ``heartbeats`` is None, they are read from Redis.
        """
        if heartbeats is None:
            heartbeats = await self.heartbeats()
        model_of = {heartbeat.worker_id: heartbeat.model for heartbeat in heartbeats}
        names = sorted({*models, *model_of.values(), *self._ledger.models} - {""})
        waiting, running, workers, controllers, dead_letters = await self._call("queue_stats", *names)
        num_running: Counter[str] = Counter()
        for worker, number in zip(running[::2], running[1::2], strict=True):
            num_running[model_of.get(worker.decode(), "")] += number
        return QueueStats(
            num_waiting=dict(zip(names, waiting[::2], strict=True)),
            cost_waiting=dict(zip(names, map(float, waiting[1::2]), strict=True)),
            num_running=num_running,
            num_workers=workers,
            num_controllers=controllers,
            num_dead_letters=dead_letters,
            num_live=self._ledger.num_live,
        )

    async def ping(self) -> None:
        """Check the connection to Redis."""
        await self._link.command("PING")

    async def check_connection(self) -> None:
        """Check that Redis responds, and record which server responds, in order to detect a replacement."""
        await self.ping()
        await retry_briefly(self._reader.identify_server)

    async def eviction_policy(self) -> str:
        """Return the ``maxmemory-policy`` if Redis may evict keys with it, or "" if it evicts none."""
        info = await self._link.command("INFO", "memory")
        policy = str(info.get("maxmemory_policy", _NO_EVICTION))
        return "" if policy == _NO_EVICTION else policy

    async def aclose(self) -> None:
        """Close the connections. Other controllers can then attach to any streams that are still live."""
        if not self._ledger.num_live:
            with contextlib.suppress(QueueUnavailable):
                await self._link.script("remove_controller", self.controller_id)
        await self._reader.aclose()
        await self._link.aclose()
        if self._uploader is not None:
            await self._uploader.store.aclose()

    def _find(self, job: Job) -> LiveJob | None:
        live = self._ledger.find(job.job_id)
        if live and live.job != job:
            raise DuplicateJob(f"Job {job.job_id} is already running with different contents.")
        return live

    async def _submit(self, live: LiveJob, weight: float, limits: QueueLimits) -> list[Any]:
        args = (*live.creation_args(self.controller_id), weight, *astuple(limits))
        digests = self._sent_images.unknown(live.pixels)
        for _ in range(NUM_TRIES):  # Redis may drop images between attempts
            if self._uploader is not None:
                if exceeded := await self._uploader.upload(live, max_bytes=limits.pixel_bytes):
                    return exceeded
                digests = []
            pairs = [arg for digest in digests for arg in (digest, live.pixels[digest])]
            reply: list[Any] = await self._call("submit", *args, *pairs)
            if reply[0] != b"pixels":
                self._sent_images.remember(live.pixels)
                return reply
            digests = [digest.decode() for digest in reply[1]]
        raise QueueUnavailable(
            "Redis dropped the images of this request before the request was queued. Increase maxmemory.",
            kind="eviction",
        )

    async def _call(self, name: str, *args: Arg) -> Any:
        return await retry_briefly(lambda: self._link.script(name, *args))
