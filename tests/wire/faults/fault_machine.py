"""Random faults in random order on real servers, and the invariants that must hold.

Script calls are repeated, live workers are reaped and continue to write, controllers are killed, images are
lost, and Redis is killed and restarted with old data or without data. Each client must receive its complete
output exactly once. No job may be assigned to a worker that does not hold it. Every job must end soon after
the faults stop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from llava_wire.controller_side.producer import JobProducer
from llava_wire.messages.event import ErrorCode, Event
from llava_wire.messages.job import ImageRef
from llava_wire.redis.connection import Arg
from llava_wire.redis.keys import PERMANENT, PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.wire.faults.participants import Client, FaultyWorker, HeldJob
from tests.wire.harness import Script, heartbeat, make_image, make_job, wrap_scripts
from tests.wire.redis_server import RedisServer

T = TypeVar("T")
ROUNDS_TO_END = 60
MAX_LIVE_JOBS = 8
picks = st.integers(0, 99)


class FaultMachine(RuleBasedStateMachine):
    """A state machine that injects faults. It kills and restarts ``server``, which must not be shared."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.server = server
        self.loop = asyncio.new_event_loop()
        self.producers: list[JobProducer] = []
        self.workers: list[FaultyWorker] = []
        self.dead_workers: list[FaultyWorker] = []
        self.dead_producers: list[JobProducer] = []
        self.clients: dict[str, Client] = {}
        self.dumps: list[bytes | None] = [None]
        self.num_assignments = 0
        self.num_reaps = 0
        self.has_restarted = False
        self.has_lost_image = False

    def wait(self, work: Awaitable[T]) -> T:
        async def waiting() -> T:
            return await work

        return self.loop.run_until_complete(waiting())

    @initialize(seed=st.integers(0, 2**16), check_interval_s=st.sampled_from([0.0, 1000.0]))
    def begin(self, seed: int, check_interval_s: float) -> None:
        self.server.client.flushall()
        self.random = random.Random(seed)
        self.check_interval_s = check_interval_s
        for _ in range(2):
            self.add_producer()
            self.add_worker()

    def add_producer(self) -> None:
        connecting = JobProducer.connect(
            self.server.url,
            check_interval_s=self.check_interval_s,
            timeout_s=60.0,  # so that a slow machine does not cause additional faults
        )
        producer = self.wait(connecting)
        self._send_twice(producer)
        self.producers.append(producer)

    def add_worker(self) -> None:
        worker_id = f"w{len(self.workers) + len(self.dead_workers)}"
        consumer = self.wait(JobConsumer.connect(self.server.url, heartbeat(worker_id)))
        self._send_twice(consumer)
        self.workers.append(FaultyWorker(worker_id, consumer))

    def _send_twice(self, participant: JobProducer | JobConsumer) -> None:
        """Run about one in three scripts twice, as if the first reply had been lost."""

        async def maybe_twice(script: Script, name: str, *args: Arg) -> Any:
            if self.random.random() < 0.3:
                await script(name, *args)
            return await script(name, *args)

        wrap_scripts(participant, maybe_twice)

    @rule(num_ticks=st.integers(1, 20))
    def run_normally(self, num_ticks: int) -> None:
        """Operate without faults. Each fault also calls this, so that the next fault hits a busy system."""
        for _ in range(num_ticks):
            chance = self.random.random()
            if chance < 0.15:
                self._submit()
            elif chance < 0.35:
                self._pull(self.random.choice(self.workers))
            elif chance < 0.65:
                self.wait(self.random.choice(self.workers).work(self.random.randrange(4)))
            elif chance < 0.95:
                self._poll(self.random.choice(self.producers))
            else:
                self.wait(self.random.choice(self.workers).reconcile())

    def _submit(self) -> None:
        if sum(not client.is_finished for client in self.clients.values()) >= MAX_LIVE_JOBS:
            return
        producer, (image, tiles) = self.random.choice(self.producers), self._any_image()
        job = make_job(*self.random.choice([[], [image]]), tenant=self.random.choice("ab"))
        self.clients[job.job_id] = Client(job, self.random.randrange(1, 12), producer)
        self.wait(producer.submit(job, {image.digest: tiles}))

    def _any_image(self) -> tuple[ImageRef, bytes]:
        return make_image(f"{self.random.randrange(3)} cats")

    def _pull(self, worker: FaultyWorker) -> None:
        for assignment in self.wait(worker.consumer._pull(self.random.randrange(1, 4))):
            self.num_assignments += 1
            client = self.clients[assignment.job.job_id]
            assert assignment.job.job_id not in worker.held
            assert set(assignment.pixels) == {image.digest for image in assignment.job.images}
            worker.held[assignment.job.job_id] = HeldJob(
                assignment, self.num_assignments, client.output_length
            )

    def _poll(self, producer: JobProducer) -> None:
        self.wait(producer._reader.poll(None))
        for job_id, event in producer._ledger.take_ready():
            client = self.clients[job_id]
            if client.producer is producer:  # else the client has moved to another controller
                self._check_error(event)
                client.receive(event)

    def _check_error(self, event: Event) -> None:
        error = event.final and event.final.error
        if error and error.code is ErrorCode.WORKER_CRASHED:
            assert self.num_reaps >= 3
        elif error:  # a controller took over a stream after its images were lost
            assert "images of this request are no longer stored" in error.message
            assert self.has_lost_image

    @rule(pick=picks)
    def requeue(self, pick: int) -> None:
        self.wait(self.workers[pick % len(self.workers)].requeue())
        self.run_normally(pick % 8)

    @rule(pick=picks)
    def reap_a_live_worker(self, pick: int) -> None:
        """Reap a worker that continues to write. Its subsequent events must be rejected."""
        self._expire(self.workers[pick % len(self.workers)])
        self.run_normally(pick % 8)

    @rule(pick=picks)
    def kill_worker(self, pick: int) -> None:
        worker = self.workers.pop(pick % len(self.workers))
        self.dead_workers.append(worker)
        self.add_worker()
        if pick % 2:
            self._expire(worker)
        self.run_normally(pick % 8)

    def _expire(self, worker: FaultyWorker) -> None:
        self.server.client.set(PREFIX + "reaped", "1", px=60_000)
        if self.server.client.zscore(PREFIX + "workers", worker.worker_id):
            self.server.client.zadd(PREFIX + "workers", {worker.worker_id: 1})
        self.wait(self.producers[0].reap())
        self.num_reaps += 1

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        client = self._any_client()
        if client:
            self.wait(client.producer.cancel(client.job.job_id, tenant=client.job.tenant))
            client.is_cancelled = True
        self.run_normally(pick % 8)

    def _any_client(self) -> Client | None:
        live = [client for client in self.clients.values() if not client.is_finished]
        return self.random.choice(live) if live else None

    @rule(pick=picks)
    def kill_controller(self, pick: int) -> None:
        """Kill a controller and move its clients to another one."""
        dead = self.producers.pop(pick % len(self.producers))
        self.dead_producers.append(dead)
        self.add_producer()
        for client in self.clients.values():
            if client.producer is dead and not client.is_finished:
                self._attach(client, self.producers[pick % len(self.producers)])
        self.run_normally(pick % 8)

    @rule(pick=picks)
    def move_client(self, pick: int) -> None:
        """Reconnect a client, possibly to another controller, while the old controller is still streaming."""
        client = self._any_client()
        if client:
            self._attach(client, self.producers[pick % len(self.producers)])
        self.run_normally(pick % 8)

    def _attach(self, client: Client, producer: JobProducer) -> None:
        if self.has_restarted and producer is not client.producer:
            # First resync the old controller, because only it has the frames delivered before the restart.
            for _ in range(2):  # one poll to detect the restart, one to resync
                self._poll(client.producer)
            if client.is_finished:
                return
        log = self.wait(producer.attach(client.job.job_id, tenant=client.job.tenant))
        assert log is not None
        for event in log:
            self._check_error(event)
        client.move_to(producer, log)

    @rule(pick=picks)
    def lose_image(self, pick: int) -> None:
        image, _ = self._any_image()
        self.server.client.delete(f"{PREFIX}blob:{image.digest}")
        self.has_lost_image = True
        self.run_normally(pick % 8)

    @rule(pick=picks)
    def restart_redis(self, pick: int) -> None:
        """Restart Redis without data, with older data, or with the latest data."""
        self.dumps.append(self.server.snapshot())
        self.run_normally(pick % 5)
        self.dumps.append(self.server.snapshot())
        self.server.restart(self.dumps[-1 - pick % len(self.dumps)])
        self.has_restarted = True
        for worker in self.workers:
            worker.is_reconciled = False
        self.run_normally(pick % 8)

    @invariant()
    def each_key_has_a_time_to_live(self) -> None:
        keys: list[bytes] = list(self.server.client.scan_iter(count=1000))
        pipeline = self.server.client.pipeline()
        for key in keys:
            pipeline.ttl(key)
        leaks = {key.decode() for key, ttl in zip(keys, pipeline.execute(), strict=True) if ttl == -1}
        assert leaks <= set(PERMANENT)

    @invariant()
    def no_job_is_assigned_to_a_worker_that_does_not_hold_it(self) -> None:
        for worker in self.workers:
            slots: Any = self.server.client.hgetall(f"{PREFIX}inflight:{worker.worker_id}")
            for job_id, slot in slots.items() if worker.is_reconciled else ():
                assert worker.holds(job_id.decode(), slot[:32].decode())

    def teardown(self) -> None:
        try:
            if self.producers:
                self._end_without_faults()
        finally:
            for producer in self.producers + self.dead_producers:
                self.wait(producer.aclose())
            for worker in self.workers + self.dead_workers:
                self.wait(worker.consumer.aclose())
            self.loop.close()

    def _end_without_faults(self) -> None:
        for round_number in range(ROUNDS_TO_END):
            for producer in self.producers:
                self._poll(producer)
            if all(client.is_finished for client in self.clients.values()):
                return
            if round_number % 2:
                for worker in self.dead_workers:
                    self._expire(worker)
            for worker in self.workers:
                self.wait(worker.consumer.send_heartbeat())
                self.wait(worker.reconcile())
                self._pull(worker)
                self.wait(worker.work(3))
        stuck = {job_id: client for job_id, client in self.clients.items() if not client.is_finished}
        raise AssertionError(f"stuck: {stuck}")
