"""A read-only view of a queue with one or more shards, for display."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any, TypeVar

from llava_wire.errors import ImageStoreUnavailable, QueueUnavailable
from llava_wire.messages.job import Job
from llava_wire.operator.inspector import (
    DeadLetter,
    Inspector,
    QueueDepth,
    RedisMemory,
    SystemStatus,
    WorkerStatus,
)
from llava_wire.redis.address import parse_redis_url
from llava_wire.redis.shards import Shard, call_available, shard_index

__all__ = ["ServerReport", "ShardedInspector"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServerReport:
    """The state of one Redis server.

    ``location`` contains no secret. ``shards`` contains the indices of its shards, and is empty for a server
    that stores only other data. ``info`` is the reply of ``Inspector.server_info``, or None if the server is
    unavailable because of ``error``.
    """

    location: str
    shards: tuple[int, ...]
    info: dict[str, Any] | None
    error: str = ""


class ShardedInspector:
    """Reads the state of all shards.

    All methods except ``memory`` raise QueueUnavailable if any shard is unavailable.
    """

    def __init__(self, shards: Sequence[Shard], *, timeout_s: float = 2.0) -> None:
        self._urls = [shard.url for shard in shards]
        self._shards = [
            Inspector(shard.url, timeout_s=timeout_s, prefix=shard.prefix, image_store=shard.image_store)
            for shard in shards
        ]

    @property
    def num_redis_errors(self) -> Counter[str]:
        """The number of errors so far, keyed by kind. See ``Link.num_errors``."""
        return sum((shard.num_redis_errors for shard in self._shards), Counter())

    async def status(self) -> SystemStatus:
        """Return the live workers with their jobs in all shards, the controllers, and the queues' sums."""
        return reduce(_merged, await self._all(lambda shard: shard.status()))

    async def available_status(self) -> SystemStatus:
        """Return the same for the shards that are available.

        Raise QueueUnavailable if no shard is available.
        """
        return reduce(_merged, await call_available(shard.status() for shard in self._shards))

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters of all shards, newest first."""
        letters = await self._all(lambda shard: shard.dead_letters())
        return sorted(chain.from_iterable(letters), key=lambda letter: letter.created_at, reverse=True)

    async def stored_images(self, job: Job) -> dict[str, bytes]:
        """Return the tiles of the job's images that are still stored, keyed by digest."""
        return await self._shards[shard_index(job.job_id, len(self._shards))].stored_images(job)

    async def image_capacity_bytes(self) -> int:
        """Return the number of bytes that a separate image store can hold, or 0 if it is unknown.

        Raise ImageStoreUnavailable.
        """
        store = self._shards[0].image_store  # the same server or file system as that of the other shards
        return 0 if store is None else await store.capacity_bytes()

    async def measure_image_store(self) -> float:
        """Write, read and delete an image in the separate image store. Return the time in seconds.

        Raise ImageStoreUnavailable, also if the image cannot be read. There must be a separate store.
        """
        store = self._shards[0].image_store
        if store is None:
            raise ValueError("There is no separate image store.")
        digest, begin = f"check-{uuid.uuid4().hex}", time.monotonic()
        await store.put(digest, digest.encode(), ttl_s=60)
        if await store.get(digest) != digest.encode():
            raise ImageStoreUnavailable("an image that was just stored could not be read", kind="lost")
        await store.delete([digest])
        return time.monotonic() - begin

    async def servers(self, data_url: str) -> list[ServerReport]:
        """Return the state of each server, including the one for data that does not belong to a job.

        ``data_url`` is the URL of this server, which can also have shards. Never raise QueueUnavailable.
        """
        reports = []
        for url in dict.fromkeys((data_url, *self._urls)):
            inspector = Inspector(url)
            shards = tuple(index for index, other in enumerate(self._urls) if other == url)
            location = parse_redis_url(url).location
            try:
                reports.append(ServerReport(location, shards, await inspector.server_info()))
            except QueueUnavailable as error:
                reports.append(ServerReport(location, shards, None, str(error)))
            finally:
                await inspector.aclose()
        return reports

    async def memory(self) -> RedisMemory:
        """Return the memory of the server that is closest to its limit, and the sizes of all stored data.

        Shards that are unavailable are omitted. Raise QueueUnavailable if no shard is available.
        """
        shards = await call_available(shard.memory() for shard in self._shards)
        stored = {name: sum(shard.stored_bytes[name] for shard in shards) for name in shards[0].stored_bytes}
        fullest = max(
            shards, key=lambda shard: shard.used_bytes / shard.limit_bytes if shard.limit_bytes else 0
        )
        return dataclasses.replace(fullest, stored_bytes=stored)

    async def aclose(self) -> None:
        await asyncio.gather(*(shard.aclose() for shard in self._shards))

    async def _all(self, call: Callable[[Inspector], Awaitable[Result]]) -> list[Result]:
        return await asyncio.gather(*map(call, self._shards))


def _merged(status: SystemStatus, other: SystemStatus) -> SystemStatus:
    """Return the status of two shards.

    Each worker and each controller is registered in both. A controller has another ID in each shard.
    """
    return SystemStatus(
        workers=tuple(_merged_workers([*status.workers, *other.workers])),
        controllers=max(status.controllers, other.controllers, key=len),
        queues={
            model: _sum(status.queues.get(model), other.queues.get(model))
            for model in sorted({*status.queues, *other.queues})
        },
        num_dead_letters=status.num_dead_letters + other.num_dead_letters,
    )


def _merged_workers(workers: Iterable[WorkerStatus]) -> Iterable[WorkerStatus]:
    merged: dict[str, WorkerStatus] = {}
    for worker in workers:
        known = merged.setdefault(worker.heartbeat.worker_id, worker)
        merged[worker.heartbeat.worker_id] = dataclasses.replace(
            known,
            num_tokens={**known.num_tokens, **worker.num_tokens},
            overdue_s=max(known.overdue_s, worker.overdue_s),
            pending_command_id=known.pending_command_id or worker.pending_command_id,
        )
    return merged.values()


def _sum(depth: QueueDepth | None, other: QueueDepth | None) -> QueueDepth:
    pairs = zip(*(dataclasses.astuple(each) for each in (depth, other) if each is not None), strict=True)
    return QueueDepth(*map(sum, pairs))
