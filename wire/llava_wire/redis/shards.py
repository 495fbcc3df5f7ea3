"""Shards: complete queues with different hash tags, so that several Redis servers can share the load.

A job belongs to the shard that its ID selects, so that every process finds it. All processes must therefore
be configured with the same number of shards, on the same servers in the same order. The first shard has the
prefix of an unsharded queue, and also contains all data that does not belong to a job.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llava_wire.errors import QueueUnavailable
from llava_wire.redis.address import parse_redis_url
from llava_wire.redis.keys import PREFIX

__all__ = ["MAX_SHARDS", "Shard", "call_available", "queue_shards", "shard_index", "shard_servers_digest"]


MAX_SHARDS = 64
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """One queue: the URL of its Redis server, the prefix of its keys, and the URL of its image store.

    If ``image_store`` is empty, the queue's Redis server stores the images.
    """

    url: str
    prefix: str = PREFIX
    image_store: str = ""


def queue_shards(urls: Sequence[str], num_shards: int, image_store: str = "") -> tuple[Shard, ...]:
    """Return the shards of a queue. They are distributed evenly over the servers.

    A Redis cluster has one URL and distributes the shards itself, because their hash tags differ.
    """
    prefixes = (PREFIX, *(PREFIX.replace("}", f"{index}}}") for index in range(1, num_shards)))
    return tuple(Shard(urls[index % len(urls)], prefix, image_store) for index, prefix in enumerate(prefixes))


def shard_servers_digest(shards: Sequence[Shard]) -> str:
    """Return a digest of the servers of all shards in their order, without credentials.

    It is empty if all shards have the same server. The same servers can have different digests if a server
    has several names. Raises RedisURLError.
    """
    locations = [parse_redis_url(shard.url).location for shard in shards]
    if len(set(locations)) == 1:
        return ""
    return hashlib.sha256(" ".join(locations).encode()).hexdigest()[:16]


def shard_index(job_id: str, num_shards: int) -> int:
    """Return the index of the shard that contains a job."""
    return zlib.crc32(job_id.encode()) % num_shards if num_shards > 1 else 0


async def call_available(calls: Iterable[Awaitable[Result]]) -> list[Result]:
    """Await one call to each shard. Return the results of the shards that are available.

    Raise the first error if all shards are unavailable, or an error that is not QueueUnavailable.
    """
    replies = await asyncio.gather(*calls, return_exceptions=True)
    errors = [reply for reply in replies if isinstance(reply, BaseException)]
    defects = [error for error in errors if not isinstance(error, QueueUnavailable)]
    if defects or len(errors) == len(replies):
        raise [*defects, *errors][0]
    return [reply for reply in replies if not isinstance(reply, BaseException)]
