"""The fair queue and its limits: costs, weights, priorities, aging and rejected jobs."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.controller_side.limits import DEFAULT_TENANT_LIMITS, TenantLimits
from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.query_results import QueuePosition
from llava_wire.errors import QueueFull, TenantOverLimit
from llava_wire.messages.event import Event
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.wire.harness import STOP, Harness, frame, make_job

pytestmark = pytest.mark.anyio


async def submit(
    producer: JobProducer, number: int, limits: TenantLimits = DEFAULT_TENANT_LIMITS, **fields: Any
) -> None:
    for _ in range(number):
        await producer.submit(make_job(**fields), {}, limits)


async def served(consumer: JobConsumer, number: int) -> list[str]:
    """Pull jobs and return their tenants in order of assignment."""
    return [assignment.job.tenant for assignment in await consumer.pull(number)]


async def test_tokens_are_shared_by_weight(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await submit(producer, 40, tenant="light")
    await submit(producer, 40, TenantLimits(weight=3.0), tenant="heavy")
    tenants = await served(consumer, 40)
    assert abs(tenants.count("heavy") - 30) <= 1


async def test_equal_weights_share_equally_regardless_of_arrival(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await submit(producer, 40, tenant="first")
    await submit(producer, 40, tenant="second")
    assert abs((await served(consumer, 40)).count("second") - 20) <= 1


async def test_high_priority_goes_first_and_low_priority_last(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await submit(producer, 1, tenant="low", priority=-1)
    await submit(producer, 1, tenant="normal")
    await submit(producer, 1, tenant="urgent", priority=1)
    assert await served(consumer, 3) == ["urgent", "normal", "low"]


async def test_a_low_priority_job_that_has_waited_long_is_served_before_urgent_jobs(
    harness: Harness,
) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await submit(producer, 1, tenant="low", priority=-1)
    await submit(producer, 20, tenant="urgent", priority=1)
    (job_id,) = harness.members("since:m")
    assert "low" not in await served(consumer, 5)
    harness.redis.zadd(PREFIX + "since:m", {job_id: 1})
    assert "low" in await served(consumer, 3)


async def test_a_long_backlog_of_one_tenant_does_not_delay_another_tenant_when_it_has_waited_long(
    harness: Harness,
) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await submit(producer, 40, tenant="flood")
    await served(consumer, 4)
    harness.redis.zadd(PREFIX + "since:m", dict.fromkeys(harness.members("since:m"), 1))
    await submit(producer, 1, tenant="other")
    assert "other" in await served(consumer, 2)


async def test_a_queue_can_be_full_by_cost(harness: Harness) -> None:
    producer = await harness.producer(max_queued_cost=25.0)
    await submit(producer, 2, cost=10.0)
    with pytest.raises(QueueFull, match="use 20 tokens, and this request needs 10; the limit is 25 tokens"):
        await submit(producer, 1, cost=10.0)
    await submit(producer, 1, cost=5.0)


async def test_a_job_larger_than_the_queue_is_accepted_when_the_queue_is_empty(harness: Harness) -> None:
    producer = await harness.producer(max_queued_cost=25.0, max_tenant_cost=25.0)
    await submit(producer, 1, cost=100.0)


async def test_a_pulled_job_is_subtracted_from_the_backlog(harness: Harness) -> None:
    producer, consumer = await harness.producer(max_queued_cost=15.0), await harness.consumer()
    await submit(producer, 1)
    assignments = await consumer.pull(1)
    await submit(producer, 1)
    await consumer.requeue(assignments)
    assert float(harness.redis.get(PREFIX + "backlog:m") or 0) == 20.0
    await consumer.pull(2)
    assert not harness.keys("backlog:")


async def test_a_cancelled_job_is_subtracted_from_the_backlog(harness: Harness) -> None:
    producer, job = await harness.producer(), make_job()
    await producer.submit(job, {})
    await submit(producer, 1)
    await producer.cancel(job.job_id, tenant=job.tenant)
    assert float(harness.redis.get(PREFIX + "backlog:m") or 0) == 10.0


async def test_a_token_limit_of_one_tenant_does_not_affect_others(harness: Harness) -> None:
    producer, consumer = await harness.producer(max_tenant_cost=25.0), await harness.consumer()
    await harness.running(producer, consumer)  # running jobs count too
    await submit(producer, 1)
    with pytest.raises(TenantOverLimit, match="use 20 tokens, and this request needs 10; the limit is 25"):
        await submit(producer, 1)
    await submit(producer, 1, tenant="bob")


async def test_the_limits_of_a_tenant_replace_the_defaults(harness: Harness) -> None:
    producer = await harness.producer(max_tenant_jobs=1)
    await submit(producer, 3, TenantLimits(max_jobs=3))
    with pytest.raises(TenantOverLimit, match="the limit is 3"):
        await submit(producer, 1, TenantLimits(max_jobs=3))
    with pytest.raises(TenantOverLimit, match="use 30 tokens"):
        await submit(producer, 1, TenantLimits(max_jobs=9, max_cost=35.0))


async def test_the_measured_rate_determines_when_to_retry(harness: Harness) -> None:
    """2,000 tokens were served in the last second. The queue has room once another 5,000 have been served."""
    producer, consumer = await harness.producer(max_queued=2), await harness.consumer()
    _, assignment = await harness.running(producer, consumer, cost=2000.0)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await submit(producer, 2, cost=5000.0)
    with pytest.raises(QueueFull) as raised:
        await submit(producer, 1)
    assert 2.0 <= raised.value.retry_after_s <= 30.0
    for bucket in harness.keys("served:"):
        harness.redis.incrbyfloat(bucket, 998_000.0)  # simulates a much higher service rate
    with pytest.raises(QueueFull) as sooner:
        await submit(producer, 1)
    assert sooner.value.retry_after_s == 1.0


async def test_a_submit_returns_the_position_and_the_estimated_wait(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    assert await producer.submit(make_job(), {}) == QueuePosition(0, 0.0)
    assert await producer.submit(make_job(), {}) == QueuePosition(1, None)
    done, waiting = await consumer.pull(2)
    await consumer.emit([(done, Event(0, (), "", STOP))])
    await consumer.requeue([waiting])
    position = await producer.submit(make_job(), {})
    assert position
    assert position.num_ahead == 1
    assert position.wait_s
    assert position.wait_s > 0


async def test_a_repeated_submit_returns_no_position(harness: Harness) -> None:
    producer, job = await harness.producer(), make_job()
    await producer.submit(job, {})
    assert await producer.submit(job, {}) is None
