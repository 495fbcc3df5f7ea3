"""What one controller has delivered: per live job the frames so far, which win over what Redis remembers.

Pure bookkeeping, no Redis: ``producer`` fills it, ``follower`` delivers through it. A frame has a place in
its log (``index``); the ledger takes each index once and in order, so the stream has neither doubles nor
gaps. What it cannot reconcile becomes a *suspect*, to be resynchronised with Redis.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Mapping

from llava_wire.messages.event import ErrorCode, Event, decode_event, decode_log, error_event
from llava_wire.messages.job import Job

__all__ = ["DeliveryLedger", "LiveJob"]

_log = logging.getLogger(__name__)


class LiveJob:
    """One job that this controller streams: everything needed to make it anew in an empty Redis."""

    def __init__(
        self,
        job: Job,
        pixels: Mapping[str, bytes],
        *,
        ttl_s: float,
        owner: int = 1,
        frames: tuple[bytes, ...] = (),
        nonce: str = "",
        trace: str = "",
        is_submitted: bool = True,
    ) -> None:
        self.job = job
        self.pixels = dict(pixels)
        self.owner = owner  # which take-over of the stream is ours
        # By it a call sent twice, or late, is told from one for another reader of the same job.
        self.nonce = nonce or uuid.uuid4().hex
        self.trace = trace  # beside the job, whose contents are the same in every trace
        self.is_submitted = is_submitted  # False while the first call is under way: it may still be refused
        self.frames = list(frames)
        self.next_offset = sum(len(event.token_ids) for event in decode_log(frames))
        self.deadline = time.monotonic() + ttl_s
        self.touched = time.monotonic()
        self.settled_at = (0, 0)  # stream id of the last resync: older entries are known, or void

    @property
    def ttl_s(self) -> float:
        """What is left of the job's life, in seconds."""
        return max(self.deadline - time.monotonic(), 0.001)


class DeliveryLedger:
    """The live jobs of one controller. Only events that are in ``ready`` have been, or will be, delivered."""

    def __init__(self) -> None:
        self.controller_id = uuid.uuid4().hex
        self.former_ids: list[str] = []  # identities to be disowned
        self.live: dict[str, LiveJob] = {}
        self.suspects: dict[str, None] = {}  # in order of suspicion
        self.regrets: dict[
            str, tuple[str, str]
        ] = {}  # job -> tenant, nonce: to be cancelled when Redis is back
        self.ready: list[tuple[str, Event]] = []
        self.moved: deque[str] = deque(maxlen=1024)  # jobs that other controllers took over
        self.beat = 0  # of this identity; Redis must remember it

    def take_new_identity(self) -> None:
        """Redis lost memory: leave the old stream, whose ids may run backwards, and doubt every job."""
        self.former_ids.append(self.controller_id)
        self.controller_id = uuid.uuid4().hex
        self.beat = 0
        for live in self.live.values():
            live.settled_at = (0, 0)
        self.suspects.update(dict.fromkeys(self.live))

    def drop(self, job_id: str) -> LiveJob | None:
        """Nothing more is delivered for this job, but what is ready."""
        self.suspects.pop(job_id, None)
        return self.live.pop(job_id, None)

    def silence(self, job_id: str) -> None:
        """Nothing at all is delivered for this job any more."""
        self.drop(job_id)
        self.ready = [item for item in self.ready if item[0] != job_id]

    def suspect(self, job_id: str) -> None:
        if job_id in self.live:
            self.suspects[job_id] = None

    def hear(self, job_id: str, index: int, payload: bytes, entry_id: tuple[int, int]) -> None:
        """A frame from the stream: ready if it is the next, dropped if a double; else the job is suspect."""
        live = self.live.get(job_id)
        if live is None or job_id in self.suspects or entry_id <= live.settled_at:
            return  # a suspect's frames come from its log, when Redis and we agree again
        if index < len(live.frames) and live.frames[index] == payload:
            return
        self.deliver(job_id, index, payload)

    def deliver(self, job_id: str, index: int, payload: bytes) -> None:
        """Make the frame at this place in the log ready, if it fits to what was delivered."""
        live = self.live.get(job_id)
        if live is None:
            return  # a worker must not write after the end, and if one does nobody hears it
        try:
            event = decode_event(payload, live.next_offset)
        except ValueError as error:  # msgspec's, and that of text which is no UTF-8
            _log.error("job %s ends: what its worker wrote is no event: %s", job_id, error)
            self.fail(job_id, ErrorCode.INTERNAL_ERROR, "a worker wrote what is no event: ask again")
            self.regrets[job_id] = live.job.tenant, ""
            return
        if index != len(live.frames) or event.offset != live.next_offset:
            self.suspect(job_id)
            return
        live.frames.append(payload)
        live.next_offset = event.next_offset
        live.touched = time.monotonic()
        self.ready.append((job_id, event))
        if event.final:
            self.drop(job_id)

    def fail(self, job_id: str, code: ErrorCode, message: str) -> None:
        """End a live job here: its stream gets a final event that no worker wrote."""
        live = self.drop(job_id)
        if live:
            self.ready.append((job_id, error_event(code, message, offset=live.next_offset)))

    def hand_over(self, job_id: str) -> None:
        """Another controller streams the job now: end it here, and never cancel it there."""
        self.fail(job_id, ErrorCode.STREAM_TAKEN_OVER, "another connection reads this answer on")
        self.moved.append(job_id)

    def expire(self) -> None:
        """End the jobs whose deadline has passed."""
        now = time.monotonic()
        for job_id, live in list(self.live.items()):
            if live.deadline <= now:
                limit = f"the request was not done within {live.job.ttl_s:g} s: try again later"
                self.fail(job_id, ErrorCode.DEADLINE_EXCEEDED, limit)
                self.regrets[job_id] = live.job.tenant, ""

    def take_ready(self) -> list[tuple[str, Event]]:
        ready, self.ready = self.ready, []
        return ready

    def delivered(self, job_id: str) -> list[Event]:
        """The events of a live job that its follower has been given."""
        live = self.live[job_id]
        num_ready = sum(1 for ready_id, _ in self.ready if ready_id == job_id)
        return decode_log(live.frames[: len(live.frames) - num_ready])
