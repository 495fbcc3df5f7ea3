"""The worker side of a queue with one or more shards.

Each worker has a home shard, from which it pulls first, so that most of its jobs belong to one shard and an
emit is one script call. It also pulls from the other shards: as soon as they have jobs while it has none, and
otherwise from one after the other. The worker emits to each of ``shards`` separately, so that a shard whose
Redis server is unavailable does not delay the jobs of other shards.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from llava_wire.errors import QueueUnavailable
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.load_command import CommandStatus, IssuedCommand
from llava_wire.redis.shards import Shard, call_available, shard_index, shard_servers_digest
from llava_wire.worker_side.consumer import JobConsumer

__all__ = ["ShardedConsumer"]

_TURN_S = 0.5  # interval at which a worker with jobs pulls from one of the other shards
_HEARTBEAT_TIMEOUT_S = 0.5  # maximum time that ``send_heartbeat`` waits for a shard


class ShardedConsumer:
    """A worker's connections to all shards of the queue. Only one ``pull`` may run at a time."""

    def __init__(self, shards: Sequence[JobConsumer], *, home: int = 0) -> None:
        self.shards = tuple(shards)
        self._home = self.shards[home]
        self._others = itertools.cycle(shard for shard in self.shards if shard is not self._home)
        self._wake_ups: dict[JobConsumer, asyncio.Task[bool]] = {}  # waiting for jobs in a shard
        self._heartbeats: dict[JobConsumer, asyncio.Task[IssuedCommand | None]] = {}

    @classmethod
    async def connect(
        cls,
        shards: Sequence[Shard],
        heartbeat: Heartbeat,
        *,
        lease_s: float = 5.0,
        hang_timeout_s: float = 30.0,
    ) -> ShardedConsumer:
        """Register the worker in all shards. Raise QueueUnavailable if none of them is available.

        The worker's ID selects its home shard.
        """
        servers = shard_servers_digest(shards)
        consumers = [
            JobConsumer(
                shard.url,
                heartbeat,
                lease_s=lease_s,
                hang_timeout_s=hang_timeout_s,
                prefix=shard.prefix,
                image_store=shard.image_store,
                num_shards=len(shards),
                shard_servers=servers,
            )
            for shard in shards
        ]
        consumer = cls(consumers, home=shard_index(heartbeat.worker_id, len(shards)))
        try:
            await call_available(each.register() for each in consumers)
        except BaseException:
            await consumer.aclose()
            raise
        return consumer

    def shard_of(self, job_id: str) -> JobConsumer:
        """Return the shard that contains a job."""
        return self.shards[shard_index(job_id, len(self.shards))]

    async def pull(self, max_jobs: int) -> list[Assignment]:
        """Pull up to ``max_jobs`` jobs of one shard in fair order. If none are waiting, wait a moment."""
        if len(self.shards) == 1:
            return await self._home.pull(max_jobs)
        shards = self._awaited_shards()
        for shard in self._in_turn(shards):
            with suppress(QueueUnavailable):  # if the jobs were assigned anyway, ``reconcile`` requeues them
                if assignments := await shard.try_pull(max_jobs):
                    return assignments
        await self._wait_for_work(shards)
        return []

    async def pull_overflow(self) -> list[Assignment]:
        """Pull a job of a tenant that has few jobs on this worker. See ``JobConsumer``."""
        if len(self.shards) == 1:
            return await self._home.pull_overflow()
        for shard in self._in_turn(self.shards):
            with suppress(QueueUnavailable):
                if assignments := await shard.try_pull(1, is_overflow=True):
                    return assignments
        return []

    async def requeue(self, assignments: Sequence[Assignment]) -> None:
        """Return jobs to their previous positions in the queue. This does not count as a crash."""
        by_shard: dict[JobConsumer, list[Assignment]] = {}
        for each in assignments:
            by_shard.setdefault(self.shard_of(each.job.job_id), []).append(each)
        await asyncio.gather(*(shard.requeue(held) for shard, held in by_shard.items()))

    async def send_heartbeat(self, heartbeat: Heartbeat | None = None) -> IssuedCommand | None:
        """Send the worker's heartbeat to all shards. Return a new operator command, if there is one.

        See ``JobConsumer.send_heartbeat``.
        """
        if len(self.shards) == 1:
            return await self._home.send_heartbeat(heartbeat)
        for shard in self.shards:
            if shard in self._heartbeats:  # the shard was unavailable, and this call is still being retried
                shard.replace_heartbeat(heartbeat)
            else:
                self._heartbeats[shard] = asyncio.ensure_future(shard.send_heartbeat(heartbeat))
        await asyncio.wait(self._heartbeats.values(), timeout=_HEARTBEAT_TIMEOUT_S)
        sent = [shard for shard, task in self._heartbeats.items() if task.done()]
        commands = [self._heartbeats.pop(shard).result() for shard in sent]
        return next((command for command in commands if command is not None), None)

    def report_command(self, status: CommandStatus) -> None:
        """Set the command status to include in subsequent heartbeats."""
        for shard in self.shards:
            shard.report_command(status)

    async def reconcile(self, held: Iterable[str]) -> set[str]:
        """Compare the held jobs with the worker's assignments in all available shards.

        See ``JobConsumer.reconcile``.
        """
        if len(self.shards) == 1:
            return await self._home.reconcile(held)
        by_shard: dict[JobConsumer, list[str]] = {shard: [] for shard in self.shards if shard.is_available}
        for job_id in held:
            by_shard.get(self.shard_of(job_id), []).append(job_id)
        lost: set[str] = set()
        for shard, job_ids in by_shard.items():
            with suppress(QueueUnavailable):
                lost |= await shard.try_reconcile(job_ids)
        return lost

    async def deregister(self) -> None:
        """Remove the worker, and return its jobs to the queue."""
        await asyncio.gather(*(shard.deregister() for shard in self.shards))

    async def aclose(self) -> None:
        tasks = [*self._wake_ups.values(), *self._heartbeats.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(shard.aclose() for shard in self.shards))

    def _awaited_shards(self) -> list[JobConsumer]:
        """Return the available shards from which a job must be pulled as soon as it is submitted.

        While the worker holds jobs, these are its home shard and the shards of these jobs. Other workers pull
        the jobs of the other shards, unless they are busy.
        """
        available = [shard for shard in self.shards if shard.is_available]
        awaited = [shard for shard in available if shard is self._home or shard.num_held]
        is_idle = not any(shard.num_held for shard in self.shards)
        return available if is_idle or self._home not in awaited else awaited

    def _in_turn(self, awaited: Sequence[JobConsumer]) -> Iterator[JobConsumer]:
        """Yield the shards from which to pull next, beginning with the home shard."""
        woken = [shard for shard, task in self._wake_ups.items() if task.done()]
        for shard in dict.fromkeys([self._home, *woken, *awaited, next(self._others)]):
            if shard.is_available:
                yield shard

    async def _wait_for_work(self, shards: Sequence[JobConsumer]) -> None:
        """Wait up to ``_TURN_S`` until one of the shards may have jobs.

        The other waiting calls continue, because a wake-up that one of them has received must not be lost.
        """
        for shard in shards:
            if shard in self._wake_ups and self._wake_ups[shard].done():
                self._wake_ups.pop(shard).result()  # raises an error that is not an outage
            if shard not in self._wake_ups:
                self._wake_ups[shard] = asyncio.ensure_future(shard.wait_for_work())
        if shards:
            wake_ups = [self._wake_ups[shard] for shard in shards]
            await asyncio.wait(wake_ups, timeout=_TURN_S, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(_TURN_S)
