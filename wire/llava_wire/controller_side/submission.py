"""The arguments by which the scripts ``submit`` and ``resync`` create a job."""

from __future__ import annotations

import msgspec

from llava_wire.controller_side.delivery_ledger import LiveJob

__all__ = ["submission", "to_milliseconds"]


def submission(live: LiveJob, controller_id: str) -> tuple[str | bytes | float, ...]:
    """The arguments by which ``submit`` and ``resync`` make a job, in the scripts' order."""
    job = live.job
    digests = " ".join(dict.fromkeys(image.digest for image in job.images))
    payload = msgspec.msgpack.encode(job)
    return (
        job.job_id,
        controller_id,
        job.tenant,
        job.model,
        job.cost,
        payload,
        to_milliseconds(live.ttl_s),
        digests,
        job.priority,
        live.nonce,
        msgspec.msgpack.encode(job.outline),
        live.trace,
    )


def to_milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
