"""Workers emit less often if many of them write to the same shard, and the cost of a token stays the same."""

from __future__ import annotations

import pytest
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import JobConsumer
from llava_wire.worker_side.emit_pacer import (
    EMITS_PER_S,
    MAX_INTERVAL_S,
    MAX_UNPACED_WRITERS,
    EmitPacer,
    emit_interval_s,
)

from tests.wire.harness import Harness, frame, make_job

pytestmark = pytest.mark.anyio

NUM_JOBS, NUM_STEPS = 4, 10


def test_a_small_fleet_emits_after_every_step() -> None:
    assert {emit_interval_s(number) for number in range(MAX_UNPACED_WRITERS + 1)} == {0.0}


def test_the_number_of_emits_per_second_is_bounded() -> None:
    for number in range(MAX_UNPACED_WRITERS + 1, 501):
        assert number / emit_interval_s(number) == pytest.approx(EMITS_PER_S)


def test_no_token_is_delayed_by_more_than_the_maximum() -> None:
    assert emit_interval_s(100_000) == MAX_INTERVAL_S


async def test_an_emit_is_due_once_the_interval_has_passed(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    _, assignment = await harness.running(producer, consumer)
    pacer = EmitPacer(consumer, slowdown=1e6)
    assert pacer.delay_s == 0
    pacer.begin()
    assert pacer.delay_s == 0  # the worker is alone
    harness.redis.zadd(PREFIX + "progress", {f"other-{number}": 1e15 for number in range(99)})
    await consumer.emit([frame(assignment, 0, 1)])
    assert consumer.num_writers == 100
    assert 0 < pacer.delay_s <= 100 / EMITS_PER_S * 1e6
    harness.redis.delete(PREFIX + "progress")
    await consumer.emit([])
    assert consumer.num_writers == 1


async def commands_per_token(harness: Harness, num_workers: int) -> float:
    """Return the number of Redis commands per token in a fleet whose workers all have ``NUM_JOBS`` jobs.

    The count includes those that scripts run. For every ``NUM_STEPS`` steps, the fleet sends the heartbeats
    and the controller's periodic calls of a second.
    """
    harness.redis.flushall()
    producer = await harness.producer(max_tenant_jobs=10_000, check_interval_s=0)
    consumers: list[JobConsumer] = [
        await harness.consumer(f"w{num_workers}-{number}") for number in range(num_workers)
    ]
    for number in range(num_workers * NUM_JOBS):
        await producer.submit(make_job(tenant=f"tenant {number % 3}"), {})
    held = [(consumer, await consumer.pull(NUM_JOBS)) for consumer in consumers]
    await producer.reap()
    before = harness.redis.info("stats")["total_commands_processed"]
    for step in range(NUM_STEPS):
        for consumer, assignments in held:
            await consumer.emit([frame(each, step, step) for each in assignments], check_overflow=True)
    for consumer in consumers:
        await consumer.send_heartbeat()
    await producer.reap()
    await producer.stats()
    num_commands = harness.redis.info("stats")["total_commands_processed"] - before
    for consumer, assignments in held:
        await consumer.requeue(assignments)
    harness.redis.flushall()
    return float(num_commands) / (num_workers * NUM_JOBS * NUM_STEPS)


async def test_commands_per_token_do_not_grow_with_the_number_of_workers(harness: Harness) -> None:
    few = await commands_per_token(harness, 4)
    many = await commands_per_token(harness, 40)
    assert many <= 1.05 * few
