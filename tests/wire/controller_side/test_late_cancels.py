"""A cancel that was meant for one reader, and arrives when another has come, ends nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import Job

from tests.wire.harness import STOP, Harness, frame, interleave, make_job

pytestmark = pytest.mark.anyio


def delay(producer: JobProducer, name: str, action: Callable[[], Awaitable[Any]]) -> None:
    """Once, what was sent as the script of this name arrives only after something else has happened."""
    link = producer._link
    script = link.script

    async def late(called: str, *args: Any) -> Any:
        if called == name:
            del link.script
            await action()
        return await script(called, *args)

    link.script = late  # type: ignore[method-assign]


async def lose_answer_to_submit(producer: JobProducer, job: Job) -> None:
    link = producer._link
    script = link.script

    async def silent(called: str, *args: Any) -> Any:
        await script(called, *args)
        raise QueueUnavailable("the answer was lost")

    link.script = silent  # type: ignore[method-assign]
    with pytest.raises(QueueUnavailable):
        await producer.submit(job, {})
    del link.script


async def test_a_reader_who_comes_back_before_a_late_cancel_arrives_reads_to_the_end(
    harness: Harness,
) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    delay(producer, "cancel", lambda: producer.attach(job.job_id, tenant=job.tenant))
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is False
    client = harness.client(producer)
    assert (await consumer.emit([frame(assignment, 0, 1, final=STOP)])).refused == set()
    assert await client.sees_end(job) == STOP


async def test_a_job_to_which_nobody_comes_back_is_abandoned(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await producer.attach(job.job_id, tenant=job.tenant)
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is True
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_a_reader_who_comes_just_after_the_cancel_is_told_so(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, _ = await harness.running(producer, consumer)
    client = harness.client(producer)
    logs = []

    async def come_back() -> None:
        logs.append(await producer.attach(job.job_id, tenant=job.tenant))

    interleave(producer, "cancel", come_back)
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is True
    assert logs == [None]
    assert job.job_id not in client.events


async def test_whoever_reads_a_job_cancelled_elsewhere_is_told_when_another_attaches(
    harness: Harness,
) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, _ = await harness.running(here, consumer)
    await there.cancel(job.job_id, tenant=job.tenant)
    assert await here.attach(job.job_id, tenant=job.tenant) is None
    final = await harness.client(here).sees_end(job)
    assert final.error
    assert final.error.code is ErrorCode.ANSWER_CANCELLED


async def test_a_regretted_submit_ends_no_job_that_was_attached_to_since(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await lose_answer_to_submit(producer, job)
    assert await producer.attach(job.job_id, tenant=job.tenant) == []
    client = harness.client(producer)  # its first turn cancels what is regretted
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.sees_end(job) == STOP


async def test_a_regretted_submit_to_which_nobody_attached_never_runs(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await lose_answer_to_submit(producer, job)
    await producer._reader.poll(None)
    assert await consumer._pull(1) == []


async def test_an_attach_whose_answer_was_lost_leaves_the_reader_and_the_grace_as_they_were(
    harness: Harness,
) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await producer._link.script("attach", job.job_id, job.tenant, producer.controller_id, "another")
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is False
    await producer._reader.poll(None)
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is True
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_a_job_read_anew_while_its_former_reading_is_resynchronised_goes_on(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    producer._ledger.change_identity()

    async def read_anew() -> None:
        producer._ledger.drop(job.job_id)
        await producer.attach(job.job_id, tenant=job.tenant)

    interleave(producer, "resync", read_anew)
    await producer._reader.poll(None)
    client = harness.client(producer)
    assert (await consumer.emit([frame(assignment, 0, 1, final=STOP)])).refused == set()
    assert await client.sees_end(job) == STOP
