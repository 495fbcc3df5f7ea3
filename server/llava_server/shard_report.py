"""A check that all workers have as many shards of the queue as this server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llava_wire.messages.heartbeat import Heartbeat

__all__ = ["shard_errors"]


def shard_errors(heartbeats: Sequence[Heartbeat], num_shards: int) -> list[str]:
    """Return an error for each other number of shards that live workers have.

    Such a worker does not see the jobs in some shards, or other servers do not see its shards.
    """
    counts = Counter(beat.num_shards for beat in heartbeats)
    return [
        f"{num_workers} of {len(heartbeats)} workers have a queue of {number} shards, but this server has "
        f"{num_shards}, so some requests are not run. Set LLAVA_QUEUE_SHARDS and LLAVA_QUEUE_URLS to the "
        "same values for all servers and workers."
        for number, num_workers in sorted(counts.items())
        if number != num_shards
    ]
