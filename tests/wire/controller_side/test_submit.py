from __future__ import annotations

import pytest
from llava_wire.errors import DuplicateJob, QueueFull, QueueUnavailable, TenantOverLimit
from llava_wire.redis.keys import PREFIX

from tests.wire.harness import STOP, Harness, frame, make_image, make_job

pytestmark = pytest.mark.anyio


async def test_a_job_submitted_twice_runs_once(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    await producer.submit(job, {})
    assert [each.job for each in await consumer.pull(4)] == [job]


async def test_a_job_submitted_again_after_its_end_does_not_run_again(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await producer.submit(job, {})
    assert (await producer.stats()).num_waiting == {"m": 0}


async def test_another_job_with_the_same_id_is_rejected(harness: Harness) -> None:
    here, there, job = await harness.producer(), await harness.producer(), make_job()
    await here.submit(job, {})
    other = make_job(job_id=job.job_id, cost=99.0)
    with pytest.raises(DuplicateJob):
        await here.submit(other, {})
    with pytest.raises(DuplicateJob):
        await there.submit(other, {})


async def test_a_full_queue_rejects_a_job_and_returns_when_to_retry(harness: Harness) -> None:
    producer = await harness.producer(max_queued=2)
    for _ in range(2):
        await producer.submit(make_job(), {})
    with pytest.raises(QueueFull) as raised:
        await producer.submit(make_job(), {})
    assert raised.value.retry_after_s > 0
    assert (await producer.stats()).num_live == 2


async def test_a_queue_with_room_accepts_the_job(harness: Harness) -> None:
    producer, consumer = await harness.producer(max_queued=1), await harness.consumer()
    await harness.running(producer, consumer)
    await producer.submit(make_job(), {})


async def test_a_tenant_over_its_limit_is_rejected_and_others_are_not(harness: Harness) -> None:
    producer, consumer = await harness.producer(max_tenant_jobs=2), await harness.consumer()
    await harness.running(producer, consumer)  # running jobs count too
    await producer.submit(make_job(), {})
    with pytest.raises(TenantOverLimit) as raised:
        await producer.submit(make_job(), {})
    assert raised.value.retry_after_s > 0
    await producer.submit(make_job(tenant="bob"), {})


async def test_a_tenant_may_submit_the_next_job_after_one_has_ended(harness: Harness) -> None:
    producer, consumer = await harness.producer(max_tenant_jobs=1), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await producer.submit(make_job(), {})


async def test_the_retry_time_is_within_its_bounds(harness: Harness) -> None:
    producer, consumer = await harness.producer(max_queued=2), await harness.consumer()
    client = harness.client(producer)
    for _ in range(3):
        job, assignment = await harness.running(producer, consumer)
        await consumer.emit([frame(assignment, 0, 1, final=STOP)])
        await client.receives_end(job)
    for _ in range(2):
        await producer.submit(make_job(), {})
    with pytest.raises(QueueFull) as raised:
        await producer.submit(make_job(), {})
    assert 1.0 <= raised.value.retry_after_s <= 60.0


async def test_redis_out_of_memory_rejects_a_job_and_stores_nothing_of_it(harness: Harness) -> None:
    producer, job = await harness.producer(), make_job()
    before = harness.keys()
    harness.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueUnavailable, match="maxmemory"):
            await producer.submit(job, {})
    finally:
        harness.redis.config_set("maxmemory", 0)
    assert harness.keys() == before


async def test_stored_images_are_not_sent_again(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})
    harness.redis.set(f"{PREFIX}blob:{image.digest}", b"as-is-stored", keepttl=True)
    await producer.submit(make_job(image), {image.digest: tiles})
    assert [each.pixels for each in await consumer.pull(4)] == [{image.digest: b"as-is-stored"}] * 2


async def test_images_that_redis_has_lost_are_sent_again_with_the_next_job(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})
    harness.redis.flushall()
    job = make_job(image)
    await producer.submit(job, {image.digest: tiles})
    assert [each.pixels for each in await consumer.pull(1)] == [{image.digest: tiles}]


async def test_a_submit_without_the_images_of_the_job_raises(harness: Harness) -> None:
    producer, (image, _) = await harness.producer(), make_image("cat")
    with pytest.raises(KeyError):
        await producer.submit(make_job(image), {})
    assert (await producer.stats()).num_live == 0


async def test_images_over_the_byte_limit_are_rejected(harness: Harness) -> None:
    producer = await harness.producer(max_pixel_bytes=20)
    (first, first_tiles), (second, second_tiles) = make_image("cat"), make_image("dog")
    await producer.submit(make_job(first), {first.digest: first_tiles})
    with pytest.raises(
        TenantOverLimit, match=r"use 12 bytes, and this request needs 12; the limit is 8 bytes"
    ):
        await producer.submit(make_job(second), {second.digest: second_tiles})
    with pytest.raises(QueueFull, match=r"use 12 of 20 bytes, and this request needs 12"):
        await producer.submit(make_job(second, tenant="bob"), {second.digest: second_tiles})
    await producer.submit(make_job(first), {first.digest: first_tiles})  # already stored


async def test_images_without_a_live_job_are_dropped_to_make_room(harness: Harness) -> None:
    producer, consumer = await harness.producer(max_pixel_bytes=20), await harness.consumer()
    (first, first_tiles), (second, second_tiles) = make_image("cat"), make_image("dog")
    await producer.submit(make_job(first), {first.digest: first_tiles})
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await producer.submit(make_job(second), {second.digest: second_tiles})
    assert harness.keys("blob:") == {f"{PREFIX}blob:{second.digest}"}


async def test_expired_images_are_not_counted(harness: Harness) -> None:
    producer, (image, tiles) = await harness.producer(), make_image("cat")
    job = make_job(image)
    await producer.submit(job, {image.digest: tiles})
    await producer.cancel(job.job_id, tenant=job.tenant)
    harness.redis.delete(f"{PREFIX}blob:{image.digest}")
    harness.redis.zadd(f"{PREFIX}pixels", {f"{image.digest} {len(tiles)}": 1})
    await producer.reap()
    assert harness.redis.get(f"{PREFIX}pixel_bytes") == b"0"
