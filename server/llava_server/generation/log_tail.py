"""A second reader of one answer: the stream belongs to somebody else, so it reads along in the log.

Looking is what keeps the job alive when its first reader is gone, see ``JobProducer.cancel_unread``.
"""

from __future__ import annotations

import asyncio

from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable

from llava_server.errors import ApiError
from llava_server.generation.output_queue import Answer

__all__ = ["read_along"]

_LOOK_S = 0.1  # between two looks: many readers of one answer are rare, and a few words at once do no harm
_NUM_PATIENT_LOOKS = 20  # the first reader may not have submitted the job yet


async def read_along(producer: JobProducer, answer: Answer) -> int | None:
    """The job's events into ``answer``, to its end. If nobody streams it any more: how many there were."""
    num_events = offset = num_misses = 0
    while not answer.is_finished:
        try:
            seen = await producer.snapshot(
                answer.job_id, tenant=answer.tenant, num_events=num_events, offset=offset
            )
        except QueueUnavailable:
            await asyncio.sleep(_LOOK_S)
            continue
        num_misses += seen is None
        if (seen and seen.state == "cancelled") or num_misses > _NUM_PATIENT_LOOKS:
            answer.put(ApiError("answer_cancelled", "this answer's first reader has cancelled it: ask again"))
            return None
        for event in seen.events if seen else ():
            answer.put(event)
            num_events, offset = num_events + 1, event.next_offset
        if seen and seen.state == "orphaned":
            return num_events
        await asyncio.sleep(_LOOK_S)
    return None
