"""The controller side of a queue with one or more shards. Each job belongs to the shard that its ID selects.

A shard whose Redis server is unavailable affects only its own jobs, because ``pick_job_id`` selects other
shards for new jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.query_results import QueueStats
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.redis.shards import Shard, call_available, shard_index

__all__ = ["ShardedProducer"]

_MAX_PICKS = 64  # IDs tried before a job is given to a shard that is unavailable
Number = TypeVar("Number", int, float)


class ShardedProducer:
    """A controller's connections to all shards of the queue.

    Call the methods that concern one job on ``shard``. The caller follows and reaps each of ``shards``.
    """

    def __init__(self, shards: Sequence[JobProducer]) -> None:
        self.shards = tuple(shards)

    @classmethod
    async def connect(cls, shards: Sequence[Shard], **options: Any) -> ShardedProducer:
        """Connect to all shards. Raise QueueUnavailable if none of them responds.

        ``options`` are those of ``JobProducer``. Limits apply to the whole queue.
        """
        producer = cls(
            [
                JobProducer(
                    shard.url,
                    prefix=shard.prefix,
                    image_store=shard.image_store,
                    num_shards=len(shards),
                    **options,
                )
                for shard in shards
            ]
        )
        try:
            await call_available(shard.check_connection() for shard in producer.shards)
        except BaseException:
            await producer.aclose()
            raise
        return producer

    @property
    def num_redis_errors(self) -> Counter[str]:
        """The number of errors so far, keyed by kind. See ``Link.num_errors``."""
        return sum((shard.num_redis_errors for shard in self.shards), Counter())

    @property
    def num_image_store_errors(self) -> Counter[str]:
        """The number of errors of a separate image store so far, keyed by kind."""
        return sum((shard.num_image_store_errors for shard in self.shards), Counter())

    async def remove_expired_images(self) -> None:
        """Remove the expired images in a separate image store. Raises ImageStoreUnavailable."""
        for shard in self.shards:
            await shard.remove_expired_images()

    def shard(self, job_id: str) -> JobProducer:
        """Return the shard that contains a job."""
        return self.shards[shard_index(job_id, len(self.shards))]

    def pick_job_id(self, job_id: str) -> str:
        """Return the ID of a new job, or a random ID with the same prefix if its shard is unavailable.

        If no shard is available, return any ID.
        """
        for _ in range(_MAX_PICKS):
            if self.shard(job_id).follow_error is None:
                break
            job_id = f"{job_id.partition('-')[0]}-{secrets.token_hex(16)}"
        return job_id

    async def heartbeats(self) -> list[Heartbeat]:
        """Return the heartbeats of the live workers, from the first shard that is available.

        Each worker sends its heartbeat to all shards. Raise QueueUnavailable if no shard is available.
        """
        *first, last = sorted(self.shards, key=lambda shard: shard.follow_error is not None)
        for shard in first:
            with contextlib.suppress(QueueUnavailable):
                return await shard.heartbeats()
        return await last.heartbeats()

    async def stats(
        self, heartbeats: Sequence[Heartbeat] | None = None, *, models: Iterable[str] = ()
    ) -> QueueStats:
        """Return the sums over the available shards. Raise QueueUnavailable if there are none.

        The arguments are those of ``JobProducer.stats``.
        """
        models = tuple(models)
        if heartbeats is None:
            heartbeats = await self.heartbeats()
        replies = await call_available(shard.stats(heartbeats, models=models) for shard in self.shards)
        return dataclasses.replace(
            replies[0],
            num_waiting=_sum_by_model(reply.num_waiting for reply in replies),
            cost_waiting=_sum_by_model(reply.cost_waiting for reply in replies),
            num_running=_sum_by_model(reply.num_running for reply in replies),
            num_dead_letters=sum(reply.num_dead_letters for reply in replies),
            num_live=sum(reply.num_live for reply in replies),
        )

    async def eviction_policy(self) -> str:
        """Return a ``maxmemory-policy`` of a shard's server that may evict keys, or "" if none does."""
        policies = await call_available(shard.eviction_policy() for shard in self.shards)
        return next(filter(None, policies), "")

    async def aclose(self) -> None:
        await asyncio.gather(*(shard.aclose() for shard in self.shards))


def _sum_by_model(shards: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    """Return the sum for each model over all shards, including sums of 0."""
    total: dict[str, Number] = {}
    for numbers in shards:
        for model, number in numbers.items():
            total[model] = total.get(model, 0) + number
    return total
