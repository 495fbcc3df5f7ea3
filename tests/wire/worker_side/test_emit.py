from __future__ import annotations

import dataclasses

import msgspec
import pytest
from llava_wire.messages.event import Event
from llava_wire.redis.connection import Link
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import FIRST_FRAMES, MAX_FRAMES, JobConsumer

from tests.wire.harness import STOP, Harness, frame, make_job

pytestmark = pytest.mark.anyio


async def test_events_reach_the_client_whole_and_in_order(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    sent = [Event(0, (7, 8), "<7><8>"), Event(2, (9,), ""), Event(3, (), "<9>"), Event(3, (), "", STOP)]
    for event in sent:
        assert (await consumer.emit([(assignment, event)])).refused == set()
    await client.receives_end(job)
    assert client.events[job.job_id] == sent


async def test_one_emit_may_have_many_streams_and_many_frames_per_stream(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    first, one = await harness.running(producer, consumer)
    second, two = await harness.running(producer, consumer)
    num = FIRST_FRAMES + MAX_FRAMES + 5
    many = [frame(one, i, i) for i in range(num)]
    assert (await consumer.emit([*many, frame(two, 0, 1), frame(two, 1, 2, final=STOP)])).refused == set()
    await client.receives(first, *range(num))
    await client.receives_end(second)


async def test_one_step_adds_one_entry_per_controller(harness: Harness) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    held = [(await harness.running(producer, consumer))[1] for producer in (here, here, there)]
    await consumer.emit([frame(assignment, 0, 1) for assignment in held])
    assert harness.redis.xlen(PREFIX + "out:" + here.controller_id) == 1
    assert harness.redis.xlen(PREFIX + "out:" + there.controller_id) == 1


async def test_an_emit_sent_twice_is_applied_once(harness: Harness) -> None:
    """This includes frames without tokens and final frames. Repeats are not rejected as stale writes."""
    producer, link = await harness.producer(), Link(harness.server.url, timeout_s=5)
    client, job = harness.client(producer), make_job()
    await producer.submit(job, {})
    await link.script("pull", "w1", "m", 5000, 30_000, 0, "", b"", "a" * 32)
    events = [Event(0, (5,), ""), Event(1, (), "<5>"), Event(1, (), "", STOP)]
    for number, event in enumerate(events, 1):
        packed = msgspec.msgpack.encode(event)
        args = (
            job.job_id,
            "a" * 32,
            number,
            event.offset,
            len(event.token_ids),
            int(bool(event.final)),
            packed,
        )
        for _ in range(2):
            assert await link.script("emit", "w1", 5000, 30_000, "", *args) == [0, [], 1]
    await client.receives_end(job)
    assert client.events[job.job_id] == events
    await link.aclose()


async def test_a_gap_requeues_the_job_at_its_position(harness: Harness) -> None:
    producer, consumer, other = (
        await harness.producer(),
        await harness.consumer("w1"),
        await harness.consumer("w2"),
    )
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1, 2)])
    assert (await consumer.emit([frame(assignment, 5, 6)])).refused == {job.job_id}
    (continued,) = await other.pull(1)
    assert (continued.token_ids, continued.text) == ((1, 2), "<1><2>")
    await other.emit([frame(continued, 2, 3, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (1, 2, 3)


async def test_a_frame_that_was_never_sent_is_a_gap(harness: Harness) -> None:
    """Redis lost a frame without tokens: the offsets match, but the frame numbers do not."""
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    consumer._frame(assignment, Event(0, (), "lost"))
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_a_rejected_stream_does_not_affect_other_streams(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    bad, one = await harness.running(producer, consumer)
    good, two = await harness.running(producer, consumer)
    assert (await consumer.emit([frame(one, 9, 1), frame(two, 0, 1)])).refused == {bad.job_id}
    await client.receives(good, 1)


async def test_another_assignment_of_the_same_worker_is_rejected(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    stale = dataclasses.replace(assignment, assignment_id="0" * 32)
    assert (await consumer.emit([frame(stale, 0, 9)])).refused == {job.job_id}
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_an_event_of_an_unknown_job_is_rejected(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    harness.redis.flushall()
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_an_expired_job_does_not_affect_other_jobs(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    gone, one = await harness.running(producer, consumer)
    job, two = await harness.running(producer, consumer)
    harness.redis.delete(PREFIX + "job:" + gone.job_id)
    await consumer.emit([frame(one, 0, 1, final=STOP), frame(two, 0, 1, final=STOP)])
    await client.receives_end(job)
    harness.redis.hdel(PREFIX + "tenant:alice", gone.job_id)  # would expire later
    harness.redis.delete(PREFIX + "log:" + gone.job_id)


async def emit_calls(harness: Harness, consumer: JobConsumer, num_streams: int) -> int:
    producer = await harness.producer()
    held = [(await harness.running(producer, consumer))[1] for _ in range(num_streams)]
    harness.redis.config_resetstat()
    for step in range(5):
        await consumer.emit([frame(assignment, step, step) for assignment in held])
    stats = harness.redis.info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])


async def test_round_trips_do_not_grow_with_the_number_of_streams(harness: Harness) -> None:
    consumer = await harness.consumer()
    assert await emit_calls(harness, consumer, 2) == await emit_calls(harness, consumer, 32) == 5
