"""Tail the event log of a job that another connection streams.

Reading the log also keeps the job alive after the other connection has ended. See
``JobProducer.cancel_unread``.
"""

from __future__ import annotations

import asyncio

from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable

from llava_server.errors import ApiError
from llava_server.generation.output_queue import OutputQueue

__all__ = ["tail_log"]

_POLL_S = 0.1
# maximum number of polls that find no log (the other connection may still be submitting the job)
_MAX_MISSES = 20


async def tail_log(producer: ShardedProducer, output: OutputQueue) -> int | None:
    """Copy all events of the job into ``output`` and return None.

    If no connection is streaming the job anymore, stop and return the number of copied events. The caller can
    then take over the stream after these events.
    """
    num_events = offset = num_misses = 0
    while not output.is_finished:
        try:
            snapshot = await producer.snapshot(
                output.job_id, tenant=output.tenant, num_events=num_events, offset=offset
            )
        except QueueUnavailable:
            await asyncio.sleep(_POLL_S)
            continue
        num_misses += snapshot is None
        if (snapshot and snapshot.state == "cancelled") or num_misses > _MAX_MISSES:
            output.put(
                ApiError(
                    "answer_cancelled", "The client that first sent this request has cancelled it. Retry."
                )
            )
            return None
        for event in snapshot.events if snapshot else ():
            output.put(event)
            num_events, offset = num_events + 1, event.next_offset
        if snapshot and snapshot.state == "orphaned":
            return num_events
        await asyncio.sleep(_POLL_S)
    return None
