"""One job that a controller streams, with everything needed to create it again in an empty Redis."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

import msgspec

from llava_wire.messages.event import Event, decode_log
from llava_wire.messages.job import Job
from llava_wire.redis.connection import Arg

__all__ = ["LiveJob"]


class LiveJob:
    """A live job and what was received of its log.

    ``nonce`` identifies one submission or take-over: a call that is repeated, or that arrives late, is told
    apart from a call for another reader of the same job. ``epoch`` counts the take-overs of the stream.
    ``trace`` is the W3C traceparent; it is stored beside the job, whose packed contents do not depend on it.
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
        self.is_submitted = is_submitted  # False during the first submit, which may still be refused
        self.frames = list(frames)
        self.next_offset = sum(len(event.token_ids) for event in decode_log(frames))
        self.deadline = time.monotonic() + ttl_s
        self.last_active = time.monotonic()
        # ID of the last stream entry at the last resync. Entries up to it are in the log already, or void.
        self.resynced_to = (0, 0)

    @property
    def remaining_ms(self) -> int:
        """Milliseconds until the deadline, at least 1."""
        return max(int((self.deadline - time.monotonic()) * 1000), 1)

    def append(self, payload: bytes, event: Event) -> None:
        """Add the next frame of the log; ``event`` is what ``payload`` decodes to."""
        self.frames.append(payload)
        self.next_offset = event.next_offset
        self.mark_active()

    def mark_active(self) -> None:
        self.last_active = time.monotonic()

    def creation_args(self, controller_id: str) -> tuple[Arg, ...]:
        """The first arguments of the scripts ``submit`` and ``resync``, by which they create the job."""
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
        )
