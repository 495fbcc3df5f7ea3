"""A tenant's jobs and their cost are counted exactly, and a submit does not read all of them."""

from __future__ import annotations

import random

import pytest
from llava_wire.controller_side.limits import TenantLimits
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import TenantOverLimit
from llava_wire.messages.assignment import Assignment
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.wire.harness import STOP, Harness, frame, make_job

pytestmark = pytest.mark.anyio

JOBS, LOAD = PREFIX + "tenant:alice", PREFIX + "load:alice"
FULL = TenantLimits(max_jobs=0)


async def reported_load(producer: JobProducer) -> tuple[int, int]:
    """Return the number of jobs and the cost that rejected submits report."""
    with pytest.raises(TenantOverLimit, match="waiting or running requests") as by_number:
        await producer.submit(make_job(), {}, FULL)
    num_jobs = int(str(by_number.value).split(" has ")[1].split()[0])
    if not num_jobs:
        return 0, 0
    with pytest.raises(TenantOverLimit, match="tokens, and this request needs") as by_cost:
        await producer.submit(make_job(), {}, TenantLimits(max_cost=0))
    return num_jobs, int(str(by_cost.value).split(" use ")[1].split()[0])


class Tenant:
    """A tenant's jobs. ``live`` maps those that Redis should count to their costs."""

    def __init__(self, harness: Harness, producer: JobProducer, consumer: JobConsumer) -> None:
        self.live: dict[str, int] = {}
        self._held: list[Assignment] = []
        self._harness, self._producer, self._consumer = harness, producer, consumer
        self._rng = random.Random(7)

    async def run_random_operation(self) -> None:
        operations = {self._submit: 8, self._pull: 3, self._finish: 6}
        losses = {self._lose_sum: 1, self._lose_jobs: 0.3, self._lose_job: 1}
        weights = operations | losses
        (operation,) = self._rng.choices([*weights], [*weights.values()])
        await operation()

    async def _submit(self) -> None:
        job = make_job(cost=float(self._rng.randrange(1, 50)))
        await self._producer.submit(job, {})
        self.live[job.job_id] = int(job.cost)

    async def _pull(self) -> None:
        self._held.extend(await self._consumer.pull(2))

    async def _finish(self) -> None:
        if self._held:
            assignment = self._held.pop()
            await self._consumer.emit([frame(assignment, 0, 1, final=STOP)])
            self.live.pop(assignment.job.job_id, None)

    async def _lose_sum(self) -> None:
        self._harness.redis.delete(LOAD)

    async def _lose_jobs(self) -> None:
        self._harness.redis.delete(JOBS)
        self.live.clear()

    async def _lose_job(self) -> None:
        if self.live:
            job_id = self._rng.choice(sorted(self.live))
            self._harness.redis.hdel(JOBS, job_id)
            del self.live[job_id]


async def test_the_load_is_exact_after_any_sequence_of_jobs_and_lost_keys(harness: Harness) -> None:
    producer = await harness.producer()
    tenant = Tenant(harness, producer, await harness.consumer())
    for _ in range(150):
        await tenant.run_random_operation()
        assert await reported_load(producer) == (len(tenant.live), sum(tenant.live.values()))
    assert len(tenant.live) > 3
    for job_id in tenant.live:
        await producer.cancel(job_id, tenant="alice")
    assert await reported_load(producer) == (0, 0)


async def test_the_sum_is_computed_again_after_a_while(harness: Harness) -> None:
    """A release that does not update the sum may write to the same hash during a rolling update."""
    producer = await harness.producer()
    await producer.submit(make_job(), {})
    assert 0 < harness.redis.pttl(LOAD) <= 600_000
    await producer.submit(make_job(), {})
    assert await reported_load(producer) == (2, 20)
    assert 0 < harness.redis.pttl(LOAD) <= 600_000  # unlike SET without KEEPTTL


async def test_the_time_of_a_submit_does_not_grow_with_the_number_of_jobs(harness: Harness) -> None:
    limits = {"max_queued": 10**6, "max_tenant_jobs": 10**6, "max_tenant_cost": 1e9}
    producer = await harness.producer(**limits)

    async def minimum_us() -> int:
        """Return the minimum time of the script, because other programs delay some of the calls."""
        harness.redis.slowlog_reset()
        for _ in range(50):
            await producer.submit(make_job(), {})
        entries = harness.redis.slowlog_get(128)
        durations = [entry["duration"] for entry in entries if entry["command"].startswith(b"EVAL")]
        return int(min(durations))

    harness.redis.config_set("slowlog-log-slower-than", 0)
    try:
        await producer.submit(make_job(), {})
        few = await minimum_us()
        harness.redis.hset(JOBS, mapping={f"other-{number}": 10 for number in range(20_000)})
        await producer.submit(make_job(), {})
        assert await minimum_us() < 4 * few  # 20 times as long if all costs are read
    finally:
        harness.redis.config_set("slowlog-log-slower-than", 10_000)  # the default
        harness.redis.delete(JOBS)
