"""The number and cost of a tenant's jobs are counted exactly, and submitting a job does not read all of them."""

from __future__ import annotations

import random
import statistics

import pytest
from llava_wire.controller_side.limits import TenantLimits
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import TenantOverLimit
from llava_wire.messages.assignment import Assignment
from llava_wire.redis.keys import PREFIX

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


async def test_the_load_is_exact_after_any_sequence_of_jobs_and_lost_keys(harness: Harness) -> None:
    rng = random.Random(7)
    producer, consumer = await harness.producer(), await harness.consumer()
    live: dict[str, int] = {}  # job ID -> cost, of the jobs that Redis counts
    held: list[Assignment] = []

    async def submit() -> None:
        job = make_job(cost=float(rng.randrange(1, 50)))
        await producer.submit(job, {})
        live[job.job_id] = int(job.cost)

    async def pull() -> None:
        held.extend(await consumer.pull(2))

    async def finish() -> None:
        if held:
            assignment = held.pop()
            await consumer.emit([frame(assignment, 0, 1, final=STOP)])
            live.pop(assignment.job.job_id, None)

    async def lose_sum() -> None:
        harness.redis.delete(LOAD)

    async def lose_jobs() -> None:
        harness.redis.delete(JOBS)
        live.clear()

    async def lose_job() -> None:
        if live:
            job_id = rng.choice(sorted(live))
            harness.redis.hdel(JOBS, job_id)
            del live[job_id]

    for _ in range(150):
        await rng.choices([submit, pull, finish, lose_sum, lose_jobs, lose_job], [8, 3, 6, 1, 0.3, 1])[0]()
        assert await reported_load(producer) == (len(live), sum(live.values()))
    assert len(live) > 3
    for job_id in list(live):
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

    async def median_us() -> float:
        """Return the median time of the script, because the mean includes delays by other programs."""
        harness.redis.slowlog_reset()
        for _ in range(50):
            await producer.submit(make_job(), {})
        entries = harness.redis.slowlog_get(128)
        return statistics.median(
            entry["duration"] for entry in entries if entry["command"].startswith(b"EVAL")
        )

    former = harness.redis.config_get("slowlog-*")
    harness.redis.config_set("slowlog-log-slower-than", 0)
    try:
        await producer.submit(make_job(), {})
        few = await median_us()
        harness.redis.hset(JOBS, mapping={f"other-{number}": 10 for number in range(20_000)})
        await producer.submit(make_job(), {})
        assert await median_us() < 2 * few
    finally:
        harness.redis.config_set("slowlog-log-slower-than", former["slowlog-log-slower-than"])
        harness.redis.delete(JOBS)
