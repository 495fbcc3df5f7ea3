"""A test harness with controllers, workers and clients on one Redis server."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from llava_wire.controller_side.producer import JobProducer
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.heartbeat import Heartbeat, ImageSpec
from llava_wire.messages.job import ImageRef, Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_wire.redis.connection import Arg
from llava_wire.redis.keys import PERMANENT, PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.waiting import async_wait_until
from tests.wire.redis_server import RedisServer

STOP = Final(reason=FinishReason.STOP)
Script: TypeAlias = Callable[..., Awaitable[Any]]
ScriptWrapper: TypeAlias = Callable[..., Awaitable[Any]]
_job_numbers = itertools.count()


def make_image(name: str, size: int = 12) -> tuple[ImageRef, bytes]:
    tiles = (name.encode() * size)[:size]
    return ImageRef(digest=hashlib.sha256(tiles).hexdigest(), num_tiles=1, side=2, width=2, height=2), tiles


def make_job(*images: ImageRef, job_id: str | None = None, **fields: Any) -> Job:
    return Job(
        job_id=job_id or f"job-{next(_job_numbers)}",
        **{
            "sampling": SamplingParams(seed=1),
            "model": "m",
            "tenant": "alice",
            "cost": 10.0,
            "messages": (Message("user", ("What is this?", *images)),),
            **fields,
        },
    )


def frame(
    assignment: Assignment, offset: int, *tokens: int, final: Final | None = None
) -> tuple[Assignment, Event]:
    return assignment, Event(offset, tokens, "".join(f"<{token}>" for token in tokens), final)


def heartbeat(worker_id: str, model: str = "m", model_digest: str = "") -> Heartbeat:
    return Heartbeat(
        model_digest=model_digest,
        worker_id=worker_id,
        model=model,
        image_spec=ImageSpec(side=2),
        context_length=128,
        capacity=4,
        device="cpu",
        precision="fp32",
        image_store="",
        shard_servers="",
    )


class Client:
    """Records all events from one controller, in order and keyed by job ID."""

    def __init__(self, producer: JobProducer) -> None:
        self.events: dict[str, list[Event]] = {}
        self._task = asyncio.create_task(self._read(producer))

    async def _read(self, producer: JobProducer) -> None:
        async for batch in producer.follow():
            for job_id, event in batch:
                self.events.setdefault(job_id, []).append(event)

    def tokens(self, job: Job) -> tuple[int, ...]:
        return tuple(token for event in self.events.get(job.job_id, []) for token in event.token_ids)

    def final(self, job: Job) -> Final | None:
        return self.events[job.job_id][-1].final if self.events.get(job.job_id) else None

    async def receives(self, job: Job, *tokens: int) -> None:
        await async_wait_until(lambda: self.tokens(job) == tokens)

    async def receives_end(self, job: Job) -> Final:
        await async_wait_until(lambda: self.final(job))
        final = self.final(job)
        assert final
        assert sum(1 for event in self.events[job.job_id] if event.final) == 1
        return final

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Harness:
    """Creates controllers, workers and clients, and closes them at the end.

    Controllers and workers connect with the restricted users in deploy/users.acl.
    """

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.redis = server.client
        self._parts: list[JobProducer | JobConsumer | Client] = []

    async def producer(self, **options: Any) -> JobProducer:
        producer = await JobProducer.connect(self.server.url_of("server"), **options)
        self._parts.append(producer)
        return producer

    async def consumer(
        self, worker_id: str = "w1", *, model: str = "m", model_digest: str = "", **options: Any
    ) -> JobConsumer:
        consumer = await JobConsumer.connect(
            self.server.url_of("worker"), heartbeat(worker_id, model, model_digest), **options
        )
        self._parts.append(consumer)
        return consumer

    def client(self, producer: JobProducer) -> Client:
        client = Client(producer)
        self._parts.append(client)
        return client

    async def running(
        self, producer: JobProducer, consumer: JobConsumer, **fields: Any
    ) -> tuple[Job, Assignment]:
        """Submit a new job and pull it."""
        job = make_job(**fields)
        await producer.submit(job, {})
        (assignment,) = await consumer.pull(1)
        assert assignment.job == job
        return job, assignment

    def kill_worker(self, worker_id: str, *, lease_end_ms: float = 1) -> None:
        """Simulate a worker whose lease has expired, while controllers call ``reap`` every second.

        By default, the lease ended a very long time ago, so the crash is not compared with other crashes.
        """
        self.redis.set(PREFIX + "reaped", "1", px=60_000)
        self.redis.zadd(PREFIX + "workers", {worker_id: lease_end_ms})

    def hang_worker(self, worker_id: str) -> None:
        """Simulate a worker that sends heartbeats but makes no progress."""
        self.redis.set(PREFIX + "reaped", "1", px=60_000)
        self.redis.zadd(PREFIX + "progress", {worker_id: 1})

    def kill_controller(self, controller_id: str) -> None:
        """Simulate a controller that has not called ``reap`` for the orphan grace period."""
        self.redis.set(PREFIX + "reaped", "1", px=60_000)
        self.redis.zadd(PREFIX + "controllers", {controller_id: 1})

    def keys(self, kind: str = "") -> set[str]:
        return {key.decode() for key in self.redis.scan_iter(f"{PREFIX}{kind}*")}

    def members(self, name: str) -> list[str]:
        """Return the members of a sorted set in order."""
        members = self.redis.zrange(PREFIX + name, 0, -1)
        return [member.decode() for member in members if isinstance(member, bytes)]

    def dead_letters(self) -> list[dict[str, str]]:
        """Return the entries of the dead-letter stream without their payloads."""
        entries: Any = self.redis.xrange(PREFIX + "dlq")
        return [
            {name.decode(): value.decode() for name, value in fields.items() if name != b"payload"}
            for _, fields in entries
        ]

    async def close(self) -> None:
        for part in reversed(self._parts):
            await (part.close() if isinstance(part, Client) else part.aclose())

    async def check_nothing_leaks(self) -> None:
        """Check that non-permanent keys have a TTL and that one ``reap`` cleans up after all participants."""
        leaks = {key for key in self.keys() if self.redis.ttl(key) == -1} - set(PERMANENT)
        assert not leaks
        for worker_id in self.members("workers"):
            self.kill_worker(worker_id)
        for controller_id in self.members("controllers"):
            self.kill_controller(controller_id)
        last = await JobProducer.connect(self.server.url_of("server"))
        await last.reap()
        await last.aclose()
        for kind in (
            "workers",
            "progress",
            "controllers",
            "wait",
            "live:",
            "tenant:",
            "suspects:",
            "since:",
            "backlog:",
            "inflight:",
            "users:",
        ):
            assert not self.keys(kind), kind
        stored = sum(self.redis.strlen(key) for key in self.keys("blob:"))
        stored += sum(int(self.redis.get(key) or 0) for key in self.keys("ref:"))
        assert int(self.redis.get(PREFIX + "pixel_bytes") or 0) == stored


def wrap_scripts(participant: JobProducer | JobConsumer, call: ScriptWrapper) -> Callable[[], None]:
    """Replace each script call with ``call(script, name, *args)``. Return a function that undoes this."""
    link = participant._link
    script = link.script

    async def wrapped(name: str, *args: Arg) -> Any:
        return await call(script, name, *args)

    link.script = wrapped  # type: ignore[method-assign]

    def restore() -> None:
        del link.script

    return restore


def before_script(
    participant: JobProducer | JobConsumer, name: str, action: Callable[[], Awaitable[Any]]
) -> None:
    """Run ``action`` once, before the next call to this script reaches Redis."""

    async def call(script: Script, called: str, *args: Arg) -> Any:
        if called == name:
            restore()
            await action()
        return await script(called, *args)

    restore = wrap_scripts(participant, call)


def after_script(
    participant: JobProducer | JobConsumer, name: str, action: Callable[[], Awaitable[Any]]
) -> None:
    """Run ``action`` once, before the reply to the next call to this script is returned."""

    async def call(script: Script, called: str, *args: Arg) -> Any:
        reply = await script(called, *args)
        if called == name:
            restore()
            await action()
        return reply

    restore = wrap_scripts(participant, call)


async def check_starts_over(job: Job, producer: JobProducer, consumer: JobConsumer, client: Client) -> None:
    """Submit the job again. Check that it starts without tokens and that only new output is delivered."""
    client.events.clear()
    await producer.submit(job, {})
    (again,) = await consumer.pull(1)
    assert again.token_ids == ()
    await consumer.emit([frame(again, 0, 2, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (2,)
