"""Two things at once: what one coroutine does between another one's question and its answer."""

from __future__ import annotations

import asyncio

import pytest
from llava_wire.controller_side.sent_images import MAX_SENT_IMAGES
from llava_wire.errors import QueueFull, QueueUnavailable
from llava_wire.redis.connection import Link
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, frame, interleave, make_job, picture

pytestmark = pytest.mark.anyio


async def test_a_job_cancelled_while_it_is_resynchronised_does_not_come_to_life(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    harness.redis.flushall()
    producer._ledger.change_identity()

    async def cancel_too_early() -> None:
        producer._ledger.drop(job.job_id)

    interleave(producer, "resync", cancel_too_early)
    await producer._reader.poll(None)
    await producer._reader.poll(None)
    assert await consumer._pull(1) == []


async def test_memory_lost_again_during_a_resync_starts_it_over(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    producer._ledger.change_identity()

    async def lose_memory() -> None:
        harness.redis.flushall()
        producer._ledger.change_identity()

    interleave(producer, "resync", lose_memory)
    await producer._reader.poll(None)
    client = harness.client(producer)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.sees_end(job) == STOP


async def test_a_beat_of_a_former_identity_does_not_count(harness: Harness) -> None:
    producer = await harness.producer()

    async def lose_memory() -> None:
        producer._ledger.change_identity()

    interleave(producer, "reap", lose_memory)
    await producer.reap()
    identity = producer.controller_id
    await producer.reap()
    assert producer.controller_id == identity
    await producer._reader.poll(None)  # disowns the former


async def test_news_of_a_former_identity_is_read_again_from_the_new_one(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    client = harness.client(producer)
    await async_wait_until(lambda: int(harness.redis.info("clients")["blocked_clients"]) == 1)
    producer._ledger.change_identity()
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.sees_end(job) == STOP


async def test_a_job_that_is_being_submitted_is_not_made_by_a_resync(harness: Harness) -> None:
    """It may still be refused; a resync knows no limits."""
    producer = await harness.producer(max_queued=1, check_interval_s=0)
    await producer.submit(make_job(), {})
    script = producer._link.script

    async def slowly(name: str, *args: str) -> object:
        if name == "submit":
            producer._ledger.change_identity()
            await producer._reader.poll(None)
        return await script(name, *args)

    producer._link.script = slowly  # type: ignore[method-assign,assignment]
    with pytest.raises(QueueFull):
        await producer.submit(make_job(), {})
    assert harness.redis.zcard(PREFIX + "wait:m") == 1


async def test_frames_between_the_take_over_and_its_answer_are_not_lost(harness: Harness) -> None:
    dead, heir, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    client = harness.client(heir)
    job, assignment = await harness.running(dead, consumer)

    async def emit() -> None:
        await consumer.emit([frame(assignment, 0, 1)])
        await async_wait_until(lambda: heir._reader._position[1] != "0-0")

    interleave(heir, "attach", emit)
    assert await heir.attach(job.job_id, tenant=job.tenant) == []
    await consumer.emit([frame(assignment, 1, 2, final=STOP)])
    await client.sees_end(job)
    assert client.tokens(job) == (1, 2)


async def test_pictures_that_redis_keeps_dropping_are_refused(harness: Harness) -> None:
    producer, (image, tiles) = await harness.producer(), picture("cat")
    script = producer._link.script

    async def dropping(name: str, *args: str) -> object:
        return [b"pixels", [image.digest.encode()]] if name == "submit" else await script(name, *args)

    producer._link.script = dropping  # type: ignore[method-assign,assignment]
    with pytest.raises(QueueUnavailable, match="more memory"):
        await producer.submit(make_job(image), {image.digest: tiles})


async def test_a_producer_remembers_a_bounded_number_of_pictures(harness: Harness) -> None:
    producer, (image, tiles) = await harness.producer(), picture("cat")
    producer._sent_images.remember(str(number) for number in range(MAX_SENT_IMAGES))
    await producer.submit(make_job(image), {image.digest: tiles})
    assert len(producer._sent_images) == MAX_SENT_IMAGES
    assert producer._sent_images.unknown([image.digest]) == []


async def test_a_pull_whose_connection_breaks_while_it_waits_asks_again(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    pull = asyncio.create_task(consumer.pull(1))
    await async_wait_until(lambda: int(harness.redis.info("clients")["blocked_clients"]) == 1)
    harness.redis.client_kill_filter(_type="normal", skipme=True)
    assert await pull == []
    await producer.submit(job, {})
    assert [each.job for each in await consumer.pull(1)] == [job]


async def test_a_cancelled_command_lets_go_at_once_and_leaves_the_link_usable(harness: Harness) -> None:
    link = Link(harness.server.url, timeout_s=60, max_connections=1)
    waiting = asyncio.create_task(link.command("BLPOP", PREFIX + "wake:none", 0))
    await async_wait_until(lambda: int(harness.redis.info("clients")["blocked_clients"]) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await link.command("PING")
    await link.aclose()


async def test_a_busy_loop_of_commands_can_be_cancelled(harness: Harness) -> None:
    """A cancellation that meets an answer must not be swallowed: a worker could not be stopped."""
    link = Link(harness.server.url, timeout_s=60)

    async def busy() -> None:
        while True:
            await link.script("stats", "m")

    for num_steps in range(40):
        task = asyncio.create_task(busy())
        for _ in range(num_steps):
            await asyncio.sleep(0)
        task.cancel()
        await async_wait_until(task.cancelled)
    await link.aclose()
