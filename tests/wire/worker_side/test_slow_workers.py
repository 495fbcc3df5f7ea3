"""A worker that is much slower than its peers receives fewer jobs, and its streams move to idle peers."""

from __future__ import annotations

import msgspec
import pytest
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.wire.harness import STOP, Harness, frame, heartbeat, make_job

pytestmark = pytest.mark.anyio


async def worker_with_speed(harness: Harness, worker_id: str, step_s: float) -> JobConsumer:
    consumer = await harness.consumer(worker_id)
    beat = msgspec.structs.replace(heartbeat(worker_id), stats={"step_s": step_s})
    await consumer.send_heartbeat(beat)
    return consumer


async def test_a_slow_worker_leaves_a_new_job_to_a_faster_one(harness: Harness) -> None:
    producer = await harness.producer()
    slow = await worker_with_speed(harness, "slow", 0.4)
    fast = await worker_with_speed(harness, "fast", 0.1)
    job = make_job()
    await producer.submit(job, {})
    assert await slow._pull(1) == []
    assert harness.keys("wake:")  # the wake-up that the slow worker may have consumed is repeated
    assert [each.job for each in await fast._pull(1)] == [job]


async def test_a_slow_worker_takes_a_job_that_no_faster_one_takes_in_time(harness: Harness) -> None:
    producer = await harness.producer()
    slow = await worker_with_speed(harness, "slow", 0.4)
    await worker_with_speed(harness, "fast", 0.1)
    job = make_job()
    await producer.submit(job, {})
    harness.redis.hset(f"{PREFIX}job:{job.job_id}", "queued_at", "0")
    assert [each.job for each in await slow._pull(1)] == [job]


async def test_a_slow_worker_takes_jobs_if_all_faster_ones_are_full(harness: Harness) -> None:
    producer = await harness.producer()
    slow = await worker_with_speed(harness, "slow", 0.4)
    fast = await worker_with_speed(harness, "fast", 0.1)
    for _ in range(5):
        await producer.submit(make_job(), {})
    assert len(await fast._pull(4)) == 4
    assert len(await slow._pull(4)) == 1


@pytest.mark.parametrize(("step_s", "other_step_s"), [(0.1, 0.1), (0.25, 0.1), (0.01, 0.0001), (0, 0.1)])
async def test_a_worker_of_similar_speed_leaves_no_job(
    harness: Harness, step_s: float, other_step_s: float
) -> None:
    producer = await harness.producer()
    consumer = await worker_with_speed(harness, "w1", step_s)
    await worker_with_speed(harness, "w2", other_step_s)
    await producer.submit(make_job(), {})
    assert len(await consumer._pull(1)) == 1


async def test_an_idle_worker_takes_over_a_stream_of_a_slow_one_once(harness: Harness) -> None:
    producer, slow = await harness.producer(), await harness.consumer("slow")
    client = harness.client(producer)
    job, stale = await harness.running(producer, slow)
    await slow.emit([frame(stale, 0, 1)])
    await slow.send_heartbeat(msgspec.structs.replace(heartbeat("slow"), stats={"step_s": 0.4}))
    fast = await worker_with_speed(harness, "fast", 0.1)
    (assignment,) = await fast._pull(4)
    assert (assignment.job, assignment.token_ids) == (job, (1,))
    assert "fast" in harness.members("progress")  # else a hang before the first event would not be detected
    assert (await slow.emit([frame(stale, 1, 99)])).refused == {job.job_id}
    harness.redis.delete(f"{PREFIX}moved:m")
    faster = await worker_with_speed(harness, "faster", 0.01)
    assert await faster._pull(4) == []  # each job is moved at most once
    await fast.emit([frame(assignment, 1, 2, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (1, 2)


async def test_streams_move_one_at_a_time(harness: Harness) -> None:
    producer, slow = await harness.producer(), await harness.consumer("slow")
    for _ in range(3):
        await harness.running(producer, slow)
    await slow.send_heartbeat(msgspec.structs.replace(heartbeat("slow"), stats={"step_s": 0.4}))
    fast, other = [await worker_with_speed(harness, name, 0.1) for name in ("fast", "other")]
    assert len(await fast._pull(4)) == 1
    assert await other._pull(4) == []
