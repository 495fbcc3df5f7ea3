"""The counted sizes of stored data equal the data in Redis after any sequence of operations."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueFull, StoreFull, TenantOverLimit
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event
from llava_wire.messages.job import ImageRef, Job, Message
from llava_wire.redis.keys import PREFIX
from llava_wire.stores.batches import BatchSpec, BatchStore
from llava_wire.stores.files import FileLimits, FileStore, StoredFile
from llava_wire.stores.responses import ResponseHead, ResponseLimits, ResponseStore, StoredResponse
from llava_wire.worker_side.consumer import JobConsumer

from tests.wire.harness import STOP, Harness, frame, make_image, make_job

pytestmark = pytest.mark.anyio

TENANTS = ("alice", "bob", "carol")
KINDS = ("job", "pixel", "file", "response")
HEAD = ResponseHead(model="m", created_at=1)
MIB = 1 << 20
FILE_LIMITS = FileLimits(10, 50_000, 100_000)


def entries(harness: Harness, name: str) -> dict[str, int]:
    """Return the counted sizes in a ZSET of "ID size" entries, keyed by ID."""
    members = [member.split() for member in harness.members(name)]
    assert len({member_id for member_id, _ in members}) == len(members)  # no object counts twice
    return {member_id: int(size) for member_id, size in members}


def stored(harness: Harness, kind: str) -> dict[str, int]:
    """Return the objects of a kind that exist, with the sizes with which they must count."""
    client, sizes = harness.redis, {}
    names = {"pixel": ("blob:",), "file": ("file:", "batch:")}.get(kind, (f"{kind}:",))
    for key in (key for name in names for key in harness.keys(name)):
        name, object_id = key.removeprefix(PREFIX).split(":", 1)
        if name == "blob":
            sizes[object_id] = client.strlen(key)
        elif name == "job":
            sizes[object_id] = int(client.hget(key, "bytes") or -1)
        elif name == "file":
            sizes[object_id] = int(client.hget(key, "size") or -1)
        elif name == "batch":
            results = sum(map(len, client.hvals(f"{PREFIX}results:{object_id}")))
            sizes[f"batch:{object_id}"] = 1024 + client.hstrlen(key, "payload") + results
        else:
            data = client.strlen(f"{PREFIX}input:{object_id}")
            if int(client.hget(key, "output_size") or -1) >= 0:
                data += client.strlen(f"{PREFIX}output:{object_id}")
            sizes[object_id] = 1024 + client.hstrlen(key, "payload") + data
    return sizes


def check(harness: Harness) -> None:
    for kind in KINDS:
        counted = entries(harness, f"{kind}s")
        assert counted == stored(harness, kind), kind
        assert int(harness.redis.get(f"{PREFIX}{kind}_bytes") or 0) == sum(counted.values()), kind
        owned: set[str] = set()
        for tenant in TENANTS:
            own = entries(harness, f"{kind}s:{tenant}")
            assert int(harness.redis.get(f"{PREFIX}{kind}_bytes:{tenant}") or 0) == sum(own.values())
            assert own.items() <= counted.items() or kind == "pixel"
            owned |= own.keys()
        assert counted.keys() <= owned
    for key in harness.keys("job:"):
        log = harness.redis.memory_usage(key.replace(":job:", ":log:", 1), samples=0) or 0
        used = (harness.redis.memory_usage(key, samples=0) or 0) + log
        assert int(harness.redis.hget(key, "bytes") or 0) >= used, key


class Clients:
    """Random operations of several tenants."""

    def __init__(self, harness: Harness, rng: random.Random) -> None:
        self._harness, self._rng = harness, rng
        self._jobs: list[Job] = []
        self._running: list[tuple[Assignment, int]] = []
        self._ids: dict[str, list[tuple[str, str]]] = {"file": [], "response": [], "batch": []}
        self._images = [make_image(str(number), 12 + number) for number in range(5)]

    async def open(self) -> None:
        url = self._harness.server.url_of("server")
        self.producer: JobProducer = await self._harness.producer(max_job_bytes=MIB, max_pixel_bytes=60)
        self.consumer: JobConsumer = await self._harness.consumer()
        self.files = FileStore(url, ttl_s=60, limits=FILE_LIMITS)
        self.responses = ResponseStore(url, ttl_s=60, limits=ResponseLimits(30_000, 60_000))
        self.batches = BatchStore(url, keep_s=60, lease_s=5, max_unfinished=8, limits=FILE_LIMITS)

    async def aclose(self) -> None:
        for store in (self.files, self.responses, self.batches):
            await store.aclose()

    async def step(self) -> None:
        operations: list[Callable[[], Awaitable[object]]] = [
            self.submit, self.submit, self.pull, self.emit, self.emit, self.cancel, self.delete, self.reap,
            self.add_file, self.add_response, self.finish_response, self.change_response, self.remove,
            self.add_batch, self.run_batch, self.lose_worker,
        ]  # fmt: skip
        await self._rng.choice(operations)()

    async def submit(self) -> None:
        images = self._rng.sample(self._images, self._rng.randrange(3))
        text = "x" * self._rng.randrange(20_000)
        parts: tuple[str | ImageRef, ...] = (text, *(image for image, _ in images))
        job = make_job(
            tenant=self._rng.choice(TENANTS),
            messages=(Message("user", parts),),
            context_length=64,
            is_background=self._rng.random() < 0.5,
        )
        try:
            await self.producer.submit(job, {image.digest: tiles for image, tiles in images})
        except (QueueFull, TenantOverLimit):
            return
        self._jobs.append(job)

    async def pull(self) -> None:
        pulled = await self.consumer.pull(2) if self._harness.keys("wait:") else []
        self._running += [(assignment, len(assignment.token_ids)) for assignment in pulled]

    async def emit(self) -> None:
        if self._running:
            assignment, length = self._running.pop(self._rng.randrange(len(self._running)))
            is_last = length > 10 or self._rng.random() < 0.3
            emitted = frame(assignment, length, 7, final=STOP if is_last else None)
            result = await self.consumer.emit([emitted])
            if not result.refused and not is_last:
                self._running.append((assignment, length + 1))

    async def cancel(self) -> None:
        if self._jobs:
            job = self._rng.choice(self._jobs)
            await self.producer.cancel(job.job_id, tenant=job.tenant)

    async def delete(self) -> None:
        if self._jobs:
            job = self._rng.choice(self._jobs)
            await self.producer.delete(job.job_id, tenant=job.tenant)

    async def reap(self) -> None:
        await self.producer.reap()

    async def lose_worker(self) -> None:
        self._harness.kill_worker("w1")
        await self.producer.reap()
        self._running.clear()
        await self.consumer.send_heartbeat()

    async def add_file(self) -> None:
        file_id, tenant = f"file-{self._rng.random()}", self._rng.choice(TENANTS)
        file = StoredFile(file_id=file_id, name="a", purpose="batch", created_at=1)
        try:
            await self.files.add(file, b"x" * self._rng.randrange(10_000), tenant=tenant)
        except StoreFull:
            return
        self._ids["file"].append((file_id, tenant))

    async def add_response(self) -> None:
        response_id, tenant = f"resp-{self._rng.random()}", self._rng.choice(TENANTS)
        data = b"x" * self._rng.randrange(10_000)
        await self.responses.add(StoredResponse(response_id, HEAD, "", data, None), tenant=tenant)
        self._ids["response"].append((response_id, tenant))

    async def finish_response(self) -> None:
        if self._ids["response"]:
            response_id, tenant = self._rng.choice(self._ids["response"])
            await self.responses.finish(response_id, HEAD, b"y" * self._rng.randrange(5000), tenant=tenant)

    async def change_response(self) -> None:
        if self._ids["response"]:
            response_id, tenant = self._rng.choice(self._ids["response"])
            head = ResponseHead(model="m", created_at=1, metadata={"a": "b" * self._rng.randrange(500)})
            await self.responses.update(response_id, head, tenant=tenant)

    async def add_batch(self) -> None:
        batch_id, tenant = f"b-{self._rng.random()}", self._rng.choice(TENANTS)
        spec = BatchSpec(
            batch_id=batch_id,
            tenant=tenant,
            input_file_id="f",
            endpoint="e",
            completion_window="24h",
            created_at=1,
            metadata={"a": "b" * self._rng.randrange(500)},
        )
        try:
            await self.batches.create(spec, num_lines=3, window_s=60)
        except StoreFull:
            return
        self._ids["batch"].append((batch_id, tenant))

    async def run_batch(self) -> None:
        if (claimed := await self.batches.claim()) is None:
            return
        batch_id = claimed.batch.spec.batch_id
        for line in range(self._rng.randrange(4)):
            data = b"z" * self._rng.randrange(5000)
            await self.batches.record(batch_id, line, data, is_completed=True, max_bytes=9000)
        if self._rng.random() < 0.5:
            await self.batches.finish(batch_id, "completed", output_file_id="", error_file_id="")

    async def remove(self) -> None:
        for kind, store in (("file", self.files), ("response", self.responses)):
            if self._ids[kind]:
                object_id, tenant = self._ids[kind].pop(self._rng.randrange(len(self._ids[kind])))
                await store.remove(object_id, tenant=tenant)


@pytest.fixture
async def clients(harness: Harness, request: pytest.FixtureRequest) -> AsyncIterator[Clients]:
    clients = Clients(harness, random.Random(request.node.name))
    await clients.open()
    yield clients
    await clients.aclose()
    harness.redis.flushall()  # unfinished jobs remain


@pytest.mark.parametrize("run", range(2))
async def test_the_counted_sizes_equal_the_stored_data(harness: Harness, clients: Clients, run: int) -> None:
    seen: set[str] = set()
    for number in range(150):
        await clients.step()
        if number % 10 == 0:
            check(harness)
            seen |= {kind for kind in KINDS if entries(harness, f"{kind}s")}
    check(harness)
    assert seen == set(KINDS)


async def test_expired_data_does_not_count(harness: Harness, clients: Clients) -> None:
    for _ in range(100):
        await clients.step()
    for kind in KINDS:
        for name in (f"{kind}s", *(f"{kind}s:{tenant}" for tenant in TENANTS)):
            for entry in harness.members(name):
                harness.redis.zadd(PREFIX + name, {entry: 1})
    await clients.producer.reap()
    assert [int(harness.redis.get(f"{PREFIX}{kind}_bytes") or 0) for kind in KINDS] == [0, 0, 0, 0]


async def test_lost_counters_are_repaired(harness: Harness, clients: Clients) -> None:
    for _ in range(60):
        await clients.step()
    for kind in KINDS:
        harness.redis.delete(f"{PREFIX}{kind}_bytes", *(f"{PREFIX}{kind}_bytes:{each}" for each in TENANTS))
    for _ in range(20):
        await clients.submit()
        await clients.add_file()
        await clients.add_response()
    await clients.producer.reap()
    for kind in KINDS:
        total = int(harness.redis.get(f"{PREFIX}{kind}_bytes") or 0)
        assert total == sum(entries(harness, f"{kind}s").values())


async def test_finished_jobs_make_room_for_new_ones_but_not_background_jobs_or_recent_ones(
    harness: Harness,
) -> None:
    producer, consumer = await harness.producer(max_job_bytes=200_000), await harness.consumer()

    async def fill(**fields: Any) -> Job:
        while True:
            job = make_job(messages=(Message("user", ("x" * 20_000,)),), note="x" * 20_000, **fields)
            try:
                await producer.submit(job, {})
            except TenantOverLimit:
                return job
            for assignment in await consumer.pull(1):
                await consumer.emit([frame(assignment, 0, 1, final=STOP)])

    def finish_long_ago() -> None:
        for key in harness.keys("job:"):
            harness.redis.pexpire(key, 200_000)

    await fill(is_background=True)
    finish_long_ago()
    with pytest.raises(TenantOverLimit, match="prompts and outputs"):
        await producer.submit(await fill(), {})
    harness.redis.flushall()
    rejected = await fill()
    num_jobs = len(harness.keys("job:"))
    finish_long_ago()
    await producer.submit(rejected, {})
    assert len(harness.keys("job:")) == num_jobs
    await producer.submit(make_job(tenant="bob"), {})
    harness.redis.flushall()


async def test_the_counted_size_of_an_ended_job_is_close_to_its_memory(harness: Harness) -> None:
    """Otherwise, an API key with many short requests would be rejected although there is room."""
    producer, consumer = await harness.producer(), await harness.consumer()

    async def run(num_jobs: int) -> tuple[int, int]:
        for _ in range(num_jobs):
            _, assignment = await harness.running(producer, consumer)
            await consumer.emit([frame(assignment, 0, 1, final=STOP)])
        harness.redis.delete(f"{PREFIX}out:{producer.controller_id}")
        memory = harness.redis.info("memory")
        return memory["used_memory"], int(harness.redis.get(f"{PREFIX}job_bytes") or 0)

    memory, counted = await run(50)
    memory_after, counted_after = await run(500)
    used = memory_after - memory
    # The memory of a server varies by a few percent, for example when a hash table grows.
    assert 0.9 * used <= counted_after - counted <= 1.5 * used


async def test_the_event_stream_of_a_controller_that_does_not_read_is_limited(harness: Harness) -> None:
    producer, consumer = await harness.producer(check_interval_s=0.1), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    text = "x" * (1 << 20)
    for number in range(20):
        final = STOP if number == 19 else None
        await consumer.emit([(assignment, Event(number, (1,), text, final))])
        size = harness.redis.memory_usage(f"{PREFIX}out:{producer.controller_id}", samples=0)
        assert size and size < 20 << 20
    client = harness.client(producer)
    await client.receives_end(job)
    assert [event.text for event in client.events[job.job_id]] == [text] * 20
