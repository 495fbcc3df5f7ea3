"""Shards: complete queues with different hash tags, so that several Redis servers can share the load.

A job belongs to the shard that its ID selects, so that every process finds it. All processes must therefore
be configured with the same number of shards. The first shard has the prefix of an unsharded queue, and also
contains all data that does not belong to a job.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from llava_wire.redis.keys import PREFIX

__all__ = ["MAX_SHARDS", "Shard", "queue_shards", "shard_index"]


MAX_SHARDS = 64


@dataclass(frozen=True)
class Shard:
    """One queue: the URL of its Redis server, and the prefix of its keys."""

    url: str
    prefix: str = PREFIX


def queue_shards(urls: Sequence[str], num_shards: int) -> tuple[Shard, ...]:
    """Return the shards of a queue. They are distributed evenly over the servers.

    A Redis cluster has one URL and distributes the shards itself, because their hash tags differ.
    """
    prefixes = (PREFIX, *(PREFIX.replace("}", f"{index}}}") for index in range(1, num_shards)))
    return tuple(Shard(urls[index % len(urls)], prefix) for index, prefix in enumerate(prefixes))


def shard_index(job_id: str, num_shards: int) -> int:
    """Return the index of the shard that contains a job."""
    return zlib.crc32(job_id.encode()) % num_shards
