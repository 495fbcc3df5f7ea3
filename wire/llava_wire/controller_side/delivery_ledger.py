"""The live jobs of a controller, and the frames that it has delivered to clients.

Delivered frames take precedence over the data in Redis. The ledger does no I/O: ``producer`` adds jobs, and
``event_reader`` adds the frames that it reads from Redis. A frame is a packed event, and its index is its
position in the job's log. For each job, the ledger accepts each index exactly once and in order, so that a
stream contains neither duplicates nor gaps. If a frame is out of sequence, the job is resynchronized with
Redis.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from llava_wire.messages.event import ErrorCode, Event, decode_event, decode_log, error_event
from llava_wire.messages.job import Job
from llava_wire.messages.log_size import max_log_bytes
from llava_wire.redis.connection import Arg

__all__ = ["RECENT_READ_S", "DeliveryLedger", "LiveJob", "PendingCancel"]

MAX_TAKEN_OVER = 1024
MAX_DISTRUSTED = 4096
RECENT_READ_S = 3.0  # a job that was read within this time is not cancelled as unread

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingCancel:
    """A cancel request to be sent once Redis is available.

    If ``nonce`` is set, the request applies only to the submission or takeover with that nonce. If
    ``spares_readers`` is true, it waits while another connection is reading the job.
    """

    job_id: str
    tenant: str
    nonce: str
    spares_readers: bool


class LiveJob:
    """A job that a controller is streaming, with all the data needed to recreate it after data loss in Redis.

    ``nonce`` identifies one submission or takeover, so that repeated or delayed calls do not affect another
    reader of the same job. ``epoch`` increases with each takeover of the stream. ``trace`` is the W3C
    traceparent. It is stored outside ``job``, because the packed job must not depend on it.
    """

    def __init__(
        self,
        job: Job,
        pixels: Mapping[str, bytes],
        *,
        ttl_s: float,
        epoch: int = 1,
        frames: tuple[bytes, ...] = (),
        nonce: str = "",
        trace: str = "",
        is_submitted: bool = True,
    ) -> None:
        self.job = job
        self.pixels = dict(pixels)
        self.epoch = epoch
        self.nonce = nonce or uuid.uuid4().hex
        self.trace = trace
        self.is_submitted = is_submitted  # False until Redis has accepted the job
        self.frames = list(frames)
        events = decode_log(frames)
        self.next_offset = sum(len(event.token_ids) for event in events)
        # Digest of the model that generated the output, or "" if there is none or the worker is older.
        self.model_digest = next((event.model_digest for event in reversed(events) if event.model_digest), "")
        self.deadline = time.monotonic() + ttl_s
        self.last_active = time.monotonic()
        self.num_supplies = 0  # how often images that workers could not read were stored again
        # ID of the last stream entry at the last resync. Entries up to and including this one are obsolete.
        self.resynced_to = (0, 0)

    @property
    def remaining_ms(self) -> int:
        """Return the time left until the deadline in milliseconds (at least 1)."""
        return max(int((self.deadline - time.monotonic()) * 1000), 1)

    def append(self, payload: bytes, event: Event) -> None:
        """Append the next frame. ``event`` is the decoded ``payload``."""
        self.frames.append(payload)
        self.next_offset = event.next_offset
        self.model_digest = event.model_digest or self.model_digest
        self.last_active = time.monotonic()

    def mark_active(self) -> None:
        self.last_active = time.monotonic()

    def creation_args(self, controller_id: str) -> tuple[Arg, ...]:
        """Return the leading arguments of ``submit`` and ``resync_job``, the scripts that create jobs."""
        job = self.job
        digests = " ".join(dict.fromkeys(image.digest for image in job.images))
        return (
            job.job_id,
            controller_id,
            job.tenant,
            job.model,
            job.cost,
            msgspec.msgpack.encode(job),
            self.remaining_ms,
            digests,
            job.priority,
            self.nonce,
            msgspec.msgpack.encode(job.outline),
            self.trace,
            max_log_bytes(job),
            int(job.is_background),
        )


class DeliveryLedger:
    """The live jobs of one controller, and the events that are ready for delivery."""

    def __init__(self) -> None:
        self._controller_id = uuid.uuid4().hex
        self._num_beats = 0  # number of beats sent under this controller ID; Redis stores the same number
        self._former_ids: list[str] = []  # to be removed from Redis
        self._live: dict[str, LiveJob] = {}
        # Lower bounds, so that the jobs are searched only if there may be one to find.
        self._first_deadline = math.inf
        self._least_active = math.inf
        self._to_resync: dict[str, None] = {}  # ordered set of job IDs
        self._pending_cancels: dict[str, PendingCancel] = {}
        self._ready: list[tuple[str, Event]] = []
        self._taken_over: deque[str] = deque(maxlen=MAX_TAKEN_OVER)
        self._distrusted: dict[str, None] = {}  # ordered set of job IDs, oldest first

    # Identity

    @property
    def controller_id(self) -> str:
        return self._controller_id

    @property
    def next_beat(self) -> int:
        """Return the sequence number of the next beat under the current controller ID."""
        return self._num_beats + 1

    def record_beat(self, controller_id: str, beat: int, *, has_lost_memory: bool) -> None:
        """Record that Redis has received a beat, and whether it had lost the previous one."""
        if controller_id != self._controller_id:
            return
        self._num_beats = beat
        if has_lost_memory:
            self.change_identity()

    def change_identity(self) -> None:
        """After data loss in Redis, switch to a new controller ID and request a resync of every job.

        The new ID has a new event stream, because the entry IDs of the old stream may go backwards after data
        loss.
        """
        self._former_ids.append(self._controller_id)
        self._controller_id = uuid.uuid4().hex
        self._num_beats = 0
        for live in self._live.values():
            live.resynced_to = (0, 0)
        self.request_full_resync()

    @property
    def former_ids(self) -> tuple[str, ...]:
        """Return the previous IDs of this controller that may still exist in Redis."""
        return tuple(self._former_ids)

    def remove_former_id(self, controller_id: str) -> None:
        self._former_ids.remove(controller_id)

    # Live jobs

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def models(self) -> set[str]:
        """Return the names of the models that the live jobs use."""
        return {live.job.model for live in self._live.values()}

    def find(self, job_id: str) -> LiveJob | None:
        return self._live.get(job_id)

    def track(self, live: LiveJob) -> None:
        """Start delivering the events of this job.

        If this controller dropped the job before, or if the reply to a takeover was lost, the stream may
        contain frames that are not part of this submission. The first frames are then supplied by a resync.
        Undelivered events are discarded, because they are intended for a former reader.
        """
        self._live[live.job.job_id] = live
        self._first_deadline = min(self._first_deadline, live.deadline)
        self._least_active = min(self._least_active, live.last_active)
        self._discard_ready(live.job.job_id)
        if live.job.job_id in self._distrusted:
            self.request_resync(live.job.job_id)

    def confirm(self, live: LiveJob) -> None:
        """Record that Redis has accepted this controller as the owner of the job."""
        live.is_submitted = True
        if live.job.job_id in self._taken_over:
            self._taken_over.remove(live.job.job_id)

    def reattach(self, live: LiveJob, nonce: str, epoch: int) -> list[Event]:
        """Transfer a live job to another reader on this controller. Return the events already delivered.

        If ``epoch`` is higher than the recorded one, another controller has owned the stream in the meantime,
        and a resync is requested.
        """
        live.nonce = nonce
        if epoch > live.epoch:
            live.epoch = epoch
            self.request_resync(live.job.job_id)
        return self.delivered_events(live)

    def delivered_events(self, live: LiveJob) -> list[Event]:
        """Return the events of a live job that ``take_ready`` has returned."""
        num_ready = sum(1 for job_id, _ in self._ready if job_id == live.job.job_id)
        return decode_log(live.frames[: len(live.frames) - num_ready])

    def drop(self, job_id: str) -> None:
        """Stop delivering this job and discard its undelivered events."""
        if self._stop(job_id):
            self.distrust_stream(job_id)
        self._discard_ready(job_id)

    def distrust_stream(self, job_id: str) -> None:
        """Record that the stream may contain frames of this job that must not be delivered."""
        self._distrusted.pop(job_id, None)
        self._distrusted[job_id] = None
        while len(self._distrusted) > MAX_DISTRUSTED:
            del self._distrusted[next(iter(self._distrusted))]

    def expire(self) -> None:
        """Fail all live jobs whose deadline has passed."""
        now = time.monotonic()
        if now < self._first_deadline:
            return
        self._first_deadline = min((live.deadline for live in self._live.values()), default=math.inf)
        for live in list(self._live.values()):
            if live.deadline <= now:
                timeout_s = live.job.ttl_s
                message = f"The request was not completed within {timeout_s:g} seconds. Retry later."
                self.fail(live, ErrorCode.DEADLINE_EXCEEDED, message)

    def fail(self, live: LiveJob, code: ErrorCode, message: str) -> None:
        """End a job's stream with an error event, and cancel the job in Redis later."""
        self._end(live.job.job_id, code, message)
        self.cancel_later(live.job.job_id, live.job.tenant)

    def was_taken_over(self, job_id: str) -> bool:
        """Return whether another controller has taken over the job.

        If so, this controller must not cancel the job.
        """
        return job_id in self._taken_over

    # Cancel requests that Redis has not received yet

    def cancel_later(
        self, job_id: str, tenant: str, nonce: str = "", *, spares_readers: bool = False
    ) -> None:
        self._pending_cancels[job_id] = PendingCancel(job_id, tenant, nonce, spares_readers)

    @property
    def pending_cancels(self) -> tuple[PendingCancel, ...]:
        return tuple(self._pending_cancels.values())

    def cancel_sent(self, cancel: PendingCancel) -> None:
        """Remove a cancel request after Redis has received it, unless a newer request has replaced it."""
        if self._pending_cancels.get(cancel.job_id) == cancel:
            del self._pending_cancels[cancel.job_id]

    # Delivery

    def receive(self, job_id: str, index: int, payload: bytes, entry_id: tuple[int, int]) -> None:
        """Accept a frame from the stream if it is the job's next frame.

        Skip the frame if it is a duplicate. Otherwise, request a resync.
        """
        live = self._live.get(job_id)
        if live is None or job_id in self._to_resync or entry_id <= live.resynced_to:
            return  # the job has ended, or a resync covers this frame
        if index < len(live.frames) and live.frames[index] == payload:
            return
        self._accept(live, index, payload)

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def take_ready(self) -> list[tuple[str, Event]]:
        """Return the (job ID, event) pairs that are ready for delivery, and clear the list."""
        ready, self._ready = self._ready, []
        return ready

    # Resynchronization

    def idle_jobs(self, idle_s: float) -> list[LiveJob]:
        """Return the submitted jobs whose last event or check was at least ``idle_s`` ago."""
        before = time.monotonic() - idle_s
        if before < self._least_active:
            return []
        self._least_active = min((live.last_active for live in self._live.values()), default=math.inf)
        return [live for live in self._live.values() if live.is_submitted and live.last_active <= before]

    def request_resync(self, job_id: str) -> None:
        if job_id in self._live:
            self._to_resync[job_id] = None

    def request_full_resync(self) -> None:
        """Request a resync of every live job."""
        self._to_resync.update(dict.fromkeys(self._live))

    @property
    def jobs_to_resync(self) -> tuple[str, ...]:
        """Return the IDs of the live jobs that must be resynchronized with Redis."""
        return tuple(self._to_resync)

    def apply_resync(
        self,
        live: LiveJob,
        controller_id: str,
        epoch: int,
        state: bytes,
        tail: list[bytes],
        last_entry: tuple[int, int],
    ) -> bool:
        """Apply a reply from the ``resync_job`` script. Return False if the reply is outdated.

        ``controller_id`` and ``epoch`` are the values with which the script was called. ``tail`` contains the
        frames in the log that have not been delivered yet. ``last_entry`` is the ID of the last stream entry.
        The reply covers all entries up to and including this one.
        """
        job_id = live.job.job_id
        if self._live.get(job_id) is not live:  # the job was dropped here, but the script may recreate it
            self.request_resync(job_id)  # no-op unless a newer LiveJob has this job ID
            if job_id not in self._live:
                self.cancel_later(job_id, live.job.tenant, live.nonce)
            return False
        if controller_id != self._controller_id or epoch != live.epoch:
            # Redis has lost data again, or another reader has attached. Another resync is already pending.
            return False
        self.finish_resync(live, controller_id)
        if state == b"moved":
            self._end(job_id, ErrorCode.STREAM_TAKEN_OVER, "Another connection has taken over this stream.")
            self._taken_over.append(job_id)
        elif state == b"cancelled":
            self._end(
                job_id, ErrorCode.ANSWER_CANCELLED, "This response was cancelled. Send the request again."
            )
        live.resynced_to = last_entry
        for frame in tail:
            if job_id not in self._live:
                break  # the job has ended
            self._accept(live, len(live.frames), frame)
        return True

    def finish_resync(self, live: LiveJob, controller_id: str) -> None:
        """Clear the job's resync request, unless the job or the controller ID has been replaced."""
        if self._live.get(live.job.job_id) is live and controller_id == self._controller_id:
            self._to_resync.pop(live.job.job_id, None)

    def _accept(self, live: LiveJob, index: int, payload: bytes) -> None:
        """Queue a frame for delivery if it is the next one in the log. Otherwise, request a resync."""
        job_id = live.job.job_id
        try:
            event = decode_event(payload, live.next_offset)
        except ValueError as error:  # a msgspec error or invalid UTF-8
            _log.error("job %s failed because its worker wrote an invalid event: %s", job_id, error)
            self.fail(live, ErrorCode.INTERNAL_ERROR, "A worker wrote an invalid event. Retry the request.")
            return
        if index != len(live.frames) or event.offset != live.next_offset:
            self.request_resync(job_id)
            return
        live.append(payload, event)
        self._ready.append((job_id, event))
        if event.final:
            self._stop(job_id)

    def _discard_ready(self, job_id: str) -> None:
        self._ready = [item for item in self._ready if item[0] != job_id]

    def _end(self, job_id: str, code: ErrorCode, message: str) -> None:
        if live := self._stop(job_id):
            self._ready.append((job_id, error_event(code, message, offset=live.next_offset)))

    def _stop(self, job_id: str) -> LiveJob | None:
        """Stop accepting frames for this job. Events that are ready for delivery are kept."""
        self._to_resync.pop(job_id, None)
        return self._live.pop(job_id, None)
