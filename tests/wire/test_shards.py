"""A queue with several shards: every job is streamed exactly, and a lost shard affects only its own jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import msgspec
import pytest
from llava_wire.controller_side.limits import QueueLimits
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable, TenantOverLimit
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.job import Job
from llava_wire.redis.keys import PREFIX
from llava_wire.redis.shards import queue_shards, shard_index
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Client, frame, heartbeat, make_image, make_job
from tests.wire.redis_server import RedisServer

pytestmark = pytest.mark.anyio


class Participants:
    """A controller that follows all shards, and a worker whose output for each job is the tokens 1 and 2."""

    def __init__(self, producer: ShardedProducer, consumer: ShardedConsumer) -> None:
        self.producer = producer
        self.consumer = consumer
        self._clients = [Client(shard) for shard in producer.shards]
        self._tasks = [asyncio.create_task(self._work())]

    def client(self, job: Job) -> Client:
        return self._clients[shard_index(job.job_id, len(self._clients))]

    async def _work(self) -> None:
        while True:
            for assignment in await self.consumer.pull(4):
                self._tasks.append(asyncio.create_task(self._run(assignment.job.job_id, assignment)))

    async def _run(self, job_id: str, assignment: object) -> None:
        shard = self.consumer.shard_of(job_id)
        await shard.emit([frame(assignment, 0, 1)])  # type: ignore[arg-type]
        await shard.emit([frame(assignment, 1, 2, final=STOP)])  # type: ignore[arg-type]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()
        await self.consumer.aclose()
        await self.producer.aclose()


async def submit(producer: ShardedProducer, job: Job, pixels: dict[str, bytes] | None = None) -> None:
    await producer.shard(job.job_id).submit(job, pixels or {})


@contextlib.asynccontextmanager
async def participants(
    servers: list[RedisServer], num_shards: int, worker_id: str = "w1"
) -> AsyncIterator[Participants]:
    urls = {role: [server.url_of(role) for server in servers] for role in ("server", "worker")}
    producer = await ShardedProducer.connect(queue_shards(urls["server"], num_shards), check_interval_s=0.5)
    consumer = await ShardedConsumer.connect(queue_shards(urls["worker"], num_shards), heartbeat(worker_id))
    both = Participants(producer, consumer)
    try:
        yield both
    finally:
        await both.aclose()


def job_on(shard: int, num_shards: int) -> Job:
    """Return a job whose ID selects this shard."""
    return next(job for job in iter(make_job, None) if shard_index(job.job_id, num_shards) == shard)


async def test_jobs_with_images_of_all_shards_are_streamed(server: RedisServer) -> None:
    async with participants([server], 4) as both:
        image, tiles = make_image("cat")
        jobs = [make_job(image) for _ in range(40)]
        for job in jobs:
            await submit(both.producer, job, {image.digest: tiles})
        for job in jobs:
            await both.client(job).receives_end(job)
            assert both.client(job).tokens(job) == (1, 2)
        assert len(Counter(shard_index(job.job_id, 4) for job in jobs)) == 4
        names = {name.partition(b":")[0] for name in server.client.scan_iter("*:job:*")}
        assert names == {b"{lv}", b"{lv1}", b"{lv2}", b"{lv3}"}
        stats = await both.producer.stats()
        assert (stats.num_workers, sum(stats.num_running.values()), stats.num_live) == (1, 0, 0)
        assert [beat.worker_id for beat in await both.producer.heartbeats()] == ["w1"]


async def test_one_shard_has_the_keys_of_an_unsharded_queue(server: RedisServer) -> None:
    async with participants([server], 1) as both:
        job = make_job()
        await submit(both.producer, job)
        await both.client(job).receives_end(job)
        assert all(name.startswith(PREFIX.encode()) for name in server.client.scan_iter())


@pytest.mark.parametrize("worker_id", ["w1", "w5"])  # with different home shards
async def test_a_lost_shard_affects_only_its_jobs_until_it_returns(
    killable_server: RedisServer, server: RedisServer, worker_id: str
) -> None:
    async with participants([server, killable_server], 2, worker_id) as both:
        before = job_on(1, 2)
        await submit(both.producer, before)
        await both.client(before).receives_end(before)
        killable_server.kill()
        await async_wait_until(lambda: both.producer.shards[1].follow_error)
        with pytest.raises(QueueUnavailable):
            await submit(both.producer, job_on(1, 2))
        for _ in range(20):
            job = make_job(job_id=both.producer.pick_job_id(job_on(1, 2).job_id))
            await submit(both.producer, job)
            await both.client(job).receives_end(job)
            assert both.client(job).tokens(job) == (1, 2)
        await asyncio.wait_for(both.consumer.send_heartbeat(), 5)
        assert [beat.worker_id for beat in await both.producer.heartbeats()] == [worker_id]
        killable_server.start()
        await async_wait_until(lambda: not both.producer.shards[1].follow_error)
        after = job_on(1, 2)
        await submit(both.producer, after)
        await both.consumer.send_heartbeat()
        await both.client(after).receives_end(after)
        assert both.client(after).tokens(after) == (1, 2)


async def test_connecting_fails_only_if_all_shards_are_unavailable(server: RedisServer) -> None:
    down = "unix:///nowhere/s"
    with pytest.raises(QueueUnavailable):
        await ShardedProducer.connect(queue_shards([down], 2))
    with pytest.raises(QueueUnavailable):
        await ShardedConsumer.connect(queue_shards([down], 2), heartbeat("w1"))
    producer = await ShardedProducer.connect(queue_shards([down, server.url_of("server")], 2))
    consumer = await ShardedConsumer.connect(
        queue_shards([down, server.url_of("worker")], 2), heartbeat("w1")
    )
    await consumer.aclose()
    await producer.aclose()


async def test_a_worker_with_jobs_also_serves_other_shards(server: RedisServer) -> None:
    urls = [server.url_of("worker")]
    producer = await ShardedProducer.connect(queue_shards([server.url_of("server")], 3))
    consumer = await ShardedConsumer.connect(queue_shards(urls, 3), heartbeat("w1"))
    home = shard_index("w1", 3)
    held: list[Assignment] = []
    for shard in (home, (home + 1) % 3, (home + 2) % 3):
        await submit(producer, job_on(shard, 3))
        while len(held) <= (shard - home) % 3:
            held += await consumer.pull(4)
    lost = await consumer.reconcile([each.job.job_id for each in held])
    assert not lost
    await consumer.requeue(held)
    assert set((await producer.stats()).num_running.values()) == {0}
    await consumer.deregister()
    await consumer.aclose()
    await producer.aclose()


async def test_the_stats_are_sums_over_all_shards(server: RedisServer) -> None:
    producer = await ShardedProducer.connect(queue_shards([server.url_of("server")], 2))
    shards = queue_shards([server.url_of("worker")], 2)
    consumer = await ShardedConsumer.connect(shards, heartbeat("w1"))
    for shard in (0, 1):
        await submit(producer, job_on(shard, 2))
        await submit(producer, msgspec.structs.replace(job_on(shard, 2), model="idle", cost=40.5))
        while not await consumer.shards[shard].try_pull(1):
            pass
    stats = await producer.stats(models=iter(("idle", "unused")))
    assert stats.num_running == {"m": 2}
    assert stats.num_waiting == {"m": 0, "idle": 2, "unused": 0}
    assert stats.cost_waiting == {"m": 0, "idle": 81, "unused": 0}
    await consumer.aclose()
    await producer.aclose()


@pytest.mark.parametrize("num_shards", [1, 2])
async def test_a_worker_keeps_its_jobs_if_it_reconciles_during_an_outage(
    server: RedisServer, num_shards: int
) -> None:
    producer = await ShardedProducer.connect(queue_shards([server.url_of("server")], num_shards))
    shards = queue_shards([server.url_of("worker")], num_shards)
    consumer = await ShardedConsumer.connect(shards, heartbeat("w1"))
    await submit(producer, make_job())
    held: list[Assignment] = []
    while not held:
        held = await consumer.pull(1)
    for shard in consumer.shards:
        assert not await shard.try_pull(1)  # the first pull is complete
        shard._report_unavailable(QueueUnavailable("down"))
    assert not await consumer.reconcile([each.job.job_id for each in held])
    stats = await producer.stats()
    assert (sum(stats.num_running.values()), sum(stats.num_waiting.values())) == (1, 0)
    await consumer.aclose()
    await producer.aclose()


async def test_limits_apply_to_the_whole_queue(server: RedisServer) -> None:
    producer = await ShardedProducer.connect(queue_shards([server.url_of("server")], 4), max_tenant_jobs=40)
    num_accepted = 0
    for _ in range(80):
        with contextlib.suppress(TenantOverLimit):
            await submit(producer, make_job())
            num_accepted += 1
    assert 35 <= num_accepted <= 52
    await producer.aclose()


def test_each_shard_gets_its_share_of_the_limits_and_a_margin() -> None:
    limits = QueueLimits(100, 1000.0, 8, 80.0, 4096, 1000)
    assert limits.per_shard(1) is limits
    assert limits.per_shard(4) == QueueLimits(32, 312.5, 3, 25.0, 1280, 313)


def test_shards_are_distributed_over_the_servers() -> None:
    shards = queue_shards(["redis://a", "redis://b"], 3)
    assert [(shard.url, shard.prefix) for shard in shards] == [
        ("redis://a", "{lv}:"),
        ("redis://b", "{lv1}:"),
        ("redis://a", "{lv2}:"),
    ]
