"""A late cancel for an earlier reader does not end a job that another reader has attached to."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import Job
from llava_wire.redis.connection import Arg
from llava_wire.redis.keys import PREFIX

from tests.wire.harness import (
    STOP,
    Harness,
    Script,
    after_script,
    before_script,
    frame,
    make_job,
    wrap_scripts,
)

pytestmark = pytest.mark.anyio


async def lose_submit_reply(producer: JobProducer, job: Job) -> None:
    async def call(script: Script, name: str, *args: Arg) -> Any:
        await script(name, *args)
        raise QueueUnavailable("the reply was lost")

    restore = wrap_scripts(producer, call)
    with pytest.raises(QueueUnavailable):
        await producer.submit(job, {})
    restore()


async def test_a_client_that_attaches_before_a_late_cancel_arrives_reads_to_the_end(
    harness: Harness,
) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    before_script(producer, "cancel", lambda: producer.attach(job.job_id, tenant=job.tenant))
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is False
    client = harness.client(producer)
    assert (await consumer.emit([frame(assignment, 0, 1, final=STOP)])).refused == set()
    assert await client.receives_end(job) == STOP


async def test_an_unread_job_is_cancelled_if_no_client_attaches(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await producer.attach(job.job_id, tenant=job.tenant)
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is True
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_a_client_that_attaches_just_after_the_cancel_gets_none(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, _ = await harness.running(producer, consumer)
    client = harness.client(producer)
    logs = []

    async def attach_again() -> None:
        logs.append(await producer.attach(job.job_id, tenant=job.tenant))

    after_script(producer, "cancel", attach_again)
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is True
    assert logs == [None]
    assert job.job_id not in client.events


async def test_a_client_of_a_job_cancelled_elsewhere_gets_an_error_when_another_attaches(
    harness: Harness,
) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, _ = await harness.running(here, consumer)
    await there.cancel(job.job_id, tenant=job.tenant)
    assert await here.attach(job.job_id, tenant=job.tenant) is None
    final = await harness.client(here).receives_end(job)
    assert final.error
    assert final.error.code is ErrorCode.ANSWER_CANCELLED


async def test_the_pending_cancel_of_a_failed_submit_does_not_end_a_job_attached_since(
    harness: Harness,
) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await lose_submit_reply(producer, job)
    assert await producer.attach(job.job_id, tenant=job.tenant) == []
    client = harness.client(producer)  # its first poll sends the pending cancel
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_the_pending_cancel_of_a_failed_submit_waits_while_another_controller_reads_the_job(
    harness: Harness,
) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    other = await harness.producer()
    await lose_submit_reply(producer, job)
    assert await other.snapshot(job.job_id, tenant=job.tenant)  # its client has repeated the request
    await producer._reader.poll(None)
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1)])
    harness.redis.hset(f"{PREFIX}job:{job.job_id}", "peeked", 0)  # the last read was long ago
    await producer._reader.poll(None)
    assert (await consumer.emit([frame(assignment, 1, 1)])).refused == {job.job_id}
    assert not producer._ledger.pending_cancels


async def test_the_job_of_a_failed_submit_never_runs_if_no_client_attaches(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await lose_submit_reply(producer, job)
    await producer._reader.poll(None)
    assert await consumer._pull(1) == []


async def test_an_attach_with_a_lost_reply_only_delays_the_cancel(
    harness: Harness,
) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await producer._link.script("take_over_job", job.job_id, job.tenant, producer.controller_id, "another")
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is False
    await producer._reader.poll(None)
    assert await producer.cancel_unread(job.job_id, tenant=job.tenant) is True
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_a_job_attached_again_during_a_resync_continues(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    producer._ledger.change_identity()

    async def attach_again() -> None:
        producer._ledger.drop(job.job_id)
        await producer.attach(job.job_id, tenant=job.tenant)

    after_script(producer, "resync_job", attach_again)
    await producer._reader.poll(None)
    client = harness.client(producer)
    assert (await consumer.emit([frame(assignment, 0, 1, final=STOP)])).refused == set()
    assert await client.receives_end(job) == STOP
