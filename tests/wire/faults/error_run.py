"""One seeded run with injected errors: controllers, workers and clients, and the invariants that must hold.

The next token of each stream is a hash of the job and all previous tokens, so a stream that continues after
wrong tokens ends with a wrong text. Runs share a server, and each run has its own database.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import anyio
import redis
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import AlreadySubmitted, QueueUnavailable
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event
from llava_wire.redis.keys import PERMANENT, PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.faults.error_injector import ErrorInjector
from tests.machine_speed import scaled
from tests.waiting import async_wait_until
from tests.wire.faults.participants import STOP, Client
from tests.wire.faults.random_errors import RandomErrors
from tests.wire.harness import heartbeat, make_image, make_job

T = TypeVar("T")
NUM_CONTROLLERS, NUM_WORKERS, NUM_JOBS = 2, 2, 6
LEASE_S = 600.0  # no lease expires by itself, so that recovery cannot depend on leases
TIMEOUT_S = 0.15
REAP_S, RECONCILE_S, STEP_S = 0.1, 0.05, 0.005
LIVE_KINDS = ("wait", "live:", "tenant:", "suspects:", "since:", "backlog:", "inflight:", "users:")


@cache
def next_token(job_id: str, tokens: tuple[int, ...]) -> int:
    digest = hashlib.blake2b(repr((job_id, tokens)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big")


def undisturbed_tokens(job_id: str, length: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while len(tokens) < length:
        tokens = (*tokens, next_token(job_id, tokens))
    return tokens


class HashClient(Client):
    """A client that compares its tokens with those of an undisturbed stream."""

    is_connecting = False  # while it resumes the stream, it reads from no controller

    def begin(self, producer: JobProducer) -> None:
        """Send the request. The events of a former request that received 503 are discarded."""
        self.producer, self.is_connecting, self.num_received = producer, False, 0
        self.events.clear()

    def _check(self) -> None:
        final = self.events[-1].final
        assert final in (None, STOP), final
        expected = undisturbed_tokens(self.job.job_id, self.output_length)
        assert tuple(self.tokens) == expected[: None if final else len(self.tokens)]


class Held:
    """A job that a worker holds, and the tokens that it has generated."""

    def __init__(self, assignment: Assignment, length: int) -> None:
        self.assignment = assignment
        self.tokens = assignment.token_ids
        self._length = length
        assert self.tokens == undisturbed_tokens(assignment.job.job_id, length)[: len(self.tokens)]
        for image in assignment.job.images:
            assert image.digest == hashlib.sha256(assignment.pixels[image.digest]).hexdigest()

    def step(self, num_tokens: int) -> Event:
        offset = len(self.tokens)
        while len(self.tokens) < min(offset + num_tokens, self._length):
            self.tokens = (*self.tokens, next_token(self.assignment.job.job_id, self.tokens))
        final = STOP if len(self.tokens) == self._length else None
        return Event(offset, self.tokens[offset:], "x" * (len(self.tokens) - offset), final)


@dataclass
class HashWorker:
    """A worker with the loops of the real one: one pulls and reconciles, one emits, one sends heartbeats."""

    consumer: JobConsumer
    random: random.Random
    lengths: dict[str, int]

    def __post_init__(self) -> None:
        self.held: dict[str, Held] = {}

    async def pull(self) -> None:
        loop = asyncio.get_running_loop()
        next_reconcile = loop.time() + RECONCILE_S
        while True:
            for each in await self.consumer.pull(4):
                self.held[each.job.job_id] = Held(each, self.lengths[each.job.job_id])
            if loop.time() >= next_reconcile:
                for job_id in await self.consumer.reconcile(list(self.held)):
                    self.held.pop(job_id, None)
                next_reconcile = loop.time() + RECONCILE_S

    async def emit(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            if not (emitted := dict(self.held)):
                continue
            events = [(held.assignment, held.step(self.random.randrange(3))) for held in emitted.values()]
            refused = (await self.consumer.emit(events)).refused
            for job_id in refused | {each.job.job_id for each, event in events if event.final}:
                if self.held.get(job_id) is emitted.get(job_id):  # else it was pulled again in the meantime
                    self.held.pop(job_id, None)

    async def beat(self) -> None:
        while True:
            await self.consumer.send_heartbeat()
            await asyncio.sleep(REAP_S)


class ErrorRun:
    """The state of one run. ``url`` leads to Redis through the injector, and ``redis`` directly."""

    def __init__(self, seed: int, url: str, injector: ErrorInjector, client: redis.Redis) -> None:
        self.url = url
        self.redis = client
        self.random = random.Random(seed)
        self.errors = RandomErrors(self.random)
        self.injector = injector
        self.producers: list[JobProducer] = []
        self.workers: list[HashWorker] = []
        self.clients: dict[str, HashClient] = {}
        self.lengths: dict[str, int] = {}

    async def run(self) -> None:
        self.redis.flushdb()
        self.injector.plan = self.errors
        try:
            async with self._participants() as tasks:
                await self._until_done(tasks, [self._client(number) for number in range(NUM_JOBS)])
                await self._until_done(tasks, [self._wait_until_idle()])
        finally:
            self.injector.plan = lambda _: None
        self._check_nothing_leaks()

    @contextlib.asynccontextmanager
    async def _participants(self) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Start controllers and workers. Yield their tasks, none of which may end."""
        tasks: list[asyncio.Task[None]] = []
        try:
            for _ in range(NUM_CONTROLLERS):
                producer = await _until_available(self._connect_producer)
                self.producers.append(producer)
                tasks += map(asyncio.create_task, (self._follow(producer), self._reap(producer)))
            for number in range(NUM_WORKERS):
                consumer = await _until_available(partial(self._connect_consumer, number))
                worker = HashWorker(consumer, self.random, self.lengths)
                self.workers.append(worker)
                tasks += map(asyncio.create_task, (worker.pull(), worker.emit(), worker.beat()))
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.errors.num_left = 0
            for worker in self.workers:
                await worker.consumer.deregister()
                await worker.consumer.aclose()
            for producer in self.producers:
                await producer.aclose()

    async def _connect_producer(self) -> JobProducer:
        producer = await JobProducer.connect(
            self.url, timeout_s=scaled(TIMEOUT_S), lease_s=LEASE_S, check_interval_s=scaled(0.2)
        )
        producer._reader._reader._timeout_s = scaled(TIMEOUT_S)
        return producer

    async def _connect_consumer(self, number: int) -> JobConsumer:
        consumer = await JobConsumer.connect(
            self.url, heartbeat(f"w{number}"), lease_s=LEASE_S, hang_timeout_s=LEASE_S
        )
        consumer._link._timeout_s = consumer._waiter._timeout_s = scaled(TIMEOUT_S)
        return consumer

    async def _follow(self, producer: JobProducer) -> None:
        async for batch in producer.follow():
            for job_id, event in batch:
                client = self.clients[job_id]
                is_reader = client.producer is producer and not client.is_connecting
                if is_reader and not client.is_cancelled:
                    client.receive(event)

    async def _reap(self, producer: JobProducer) -> None:
        while True:
            for call in (producer.reap, producer.stats):
                with contextlib.suppress(QueueUnavailable):
                    await call()
            await asyncio.sleep(REAP_S)

    async def _until_done(
        self, tasks: Sequence[asyncio.Task[None]], coroutines: list[Coroutine[Any, Any, None]]
    ) -> None:
        """Run coroutines to their end. Fail if one of the participants' tasks ends first."""
        actions = [asyncio.create_task(each) for each in coroutines]
        try:
            with anyio.move_on_after(scaled(30)) as scope:
                pending = {*actions}
                while pending:
                    done, _ = await asyncio.wait({*pending, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                        assert task in pending, f"{task} ended"
                    pending -= done
            assert not scope.cancelled_caught, self._describe()
        finally:
            for action in actions:
                action.cancel()
            await asyncio.gather(*actions, return_exceptions=True)

    def _describe(self) -> str:
        """Return the state of all unfinished streams, for the error message of a run that does not end."""
        stuck = {job_id: client for job_id, client in self.clients.items() if not client.is_finished}
        states = {job_id: self.redis.hgetall(f"{PREFIX}job:{job_id}") for job_id in stuck}
        held = [list(worker.held) for worker in self.workers]
        ledgers = [vars(producer._ledger) for producer in self.producers]
        return f"stuck: {stuck}\nin Redis: {states}\nheld: {held}\nledgers: {ledgers}"

    async def _client(self, number: int) -> None:
        """Request a stream and read it to its end. Possibly change to the other controller, or cancel."""
        images = self.random.choice(([], [], [make_image(f"{self.random.randrange(2)} cats")]))
        job = make_job(
            *(image for image, _ in images), job_id=f"job{number}", tenant=self.random.choice("ab")
        )
        pixels = {image.digest: tiles for image, tiles in images}
        length = self.lengths[job.job_id] = self.random.randrange(1, 12)
        client = self.clients[job.job_id] = HashClient(job, length, self.random.choice(self.producers))
        await self._submit(client, pixels)
        action = self.random.choice(("move", "cancel", "", "", ""))
        if action:
            at = self.random.randrange(length + 1)
            await async_wait_until(lambda: client.is_finished or len(client.tokens) >= at)
        if action == "move" and not client.is_finished:
            await self._attach(client, pixels)
        if action == "cancel" and not client.is_finished:
            client.is_cancelled = True
            with contextlib.suppress(QueueUnavailable):  # the controller then cancels the job later
                await client.producer.cancel(job.job_id, tenant=job.tenant)
        await async_wait_until(lambda: client.is_finished)

    async def _submit(self, client: HashClient, pixels: dict[str, bytes]) -> None:
        """Send the request, and send it again after each 503, like a client with an Idempotency-Key."""

        async def submit() -> bool:
            client.begin(self.random.choice(self.producers))
            try:
                await client.producer.submit(client.job, pixels)
            except AlreadySubmitted:
                client.events.clear()
                return await self._try_attach(client)
            return True

        while not await _until_available(submit):
            pass  # the job was cancelled by the controller whose reply to an earlier request was 503

    async def _attach(self, client: HashClient, pixels: dict[str, bytes]) -> None:
        if not await _until_available(lambda: self._try_attach(client)) and not client.is_finished:
            await self._submit(client, pixels)

    async def _try_attach(self, client: HashClient) -> bool:
        producer = self.random.choice(self.producers)
        client.is_connecting = True
        log = await producer.attach(client.job.job_id, tenant=client.job.tenant)
        if log is None:
            assert not client.events, "a stream that had begun was cancelled"
            return False
        client.is_connecting = False
        client.move_to(producer, log)
        return True

    async def _wait_until_idle(self) -> None:
        self.errors.num_left = 0
        await async_wait_until(lambda: not any(worker.held for worker in self.workers), "idle workers")
        for producer in self.producers:
            ledger = producer._ledger
            await async_wait_until(lambda: not ledger.num_live and not ledger.pending_cancels, "idle ledgers")  # noqa: B023
        for worker in self.workers:
            assert not worker.consumer._held
            assert not worker.consumer._positions

    def _check_nothing_leaks(self) -> None:
        keys = {key.decode() for key in self.redis.scan_iter(count=1000)}
        leaks = {key for key in keys if self.redis.ttl(key) == -1} - set(PERMANENT)
        assert not leaks
        live = {key for key in keys if key.startswith(tuple(PREFIX + kind for kind in LIVE_KINDS))}
        assert not live
        stored = sum(self.redis.strlen(key) for key in keys if key.startswith(f"{PREFIX}blob:"))
        assert int(self.redis.get(f"{PREFIX}pixel_bytes") or 0) == stored
        for job_id, client in self.clients.items():
            state = self.redis.hget(f"{PREFIX}job:{job_id}", "state")
            assert state == b"done" or (client.is_cancelled and state in (b"cancelled", None)), (
                job_id,
                state,
            )


async def _until_available(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat ``call`` while it raises QueueUnavailable, like a client that receives 503."""
    while True:
        with contextlib.suppress(QueueUnavailable):
            return await call()
        await asyncio.sleep(STEP_S)
