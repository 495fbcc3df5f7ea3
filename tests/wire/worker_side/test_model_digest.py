"""An output is continued only by a worker whose model has the same digest."""

from __future__ import annotations

import msgspec
import pytest
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode, Event
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, frame, make_job

pytestmark = pytest.mark.anyio


def first_frame(assignment: Assignment, *tokens: int, digest: str) -> tuple[Assignment, Event]:
    assignment, event = frame(assignment, len(assignment.token_ids), *tokens)
    return assignment, msgspec.structs.replace(event, model_digest=digest)


async def test_an_output_continues_only_on_a_worker_with_the_same_model(harness: Harness) -> None:
    producer, old = await harness.producer(), await harness.consumer("old", model_digest="a")
    client = harness.client(producer)
    job, assignment = await harness.running(producer, old)
    await old.emit([first_frame(assignment, 1, digest="a")])
    harness.kill_worker("old")
    await producer.reap()
    other = await harness.consumer("other", model_digest="b")
    assert await other._pull(4) == []
    same = await harness.consumer("same", model_digest="a")
    (assignment,) = await same.pull(4)
    assert (assignment.job, assignment.token_ids) == (job, (1,))
    await same.emit([frame(assignment, 1, 2, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_jobs_behind_an_output_of_another_model_are_served(harness: Harness) -> None:
    producer, old = await harness.producer(), await harness.consumer("old", model_digest="a")
    _, assignment = await harness.running(producer, old)
    await old.emit([first_frame(assignment, 1, digest="a")])
    await old.requeue([assignment])
    later = make_job()
    await producer.submit(later, {})
    other = await harness.consumer("other", model_digest="b")
    harness.redis.delete(f"{PREFIX}wake:m")
    assert [each.job for each in await other._pull(4)] == [later]
    assert not harness.keys("wake:")  # else the worker would pull again and again
    assert [each.job for each in await old._pull(4)] == [assignment.job]


async def test_a_job_without_output_runs_on_any_worker(harness: Harness) -> None:
    producer, old = await harness.producer(), await harness.consumer("old", model_digest="a")
    job, assignment = await harness.running(producer, old)
    await old.requeue([assignment])
    other = await harness.consumer("other", model_digest="b")
    assert [each.job for each in await other._pull(4)] == [job]


async def test_an_output_ends_with_an_error_if_its_model_does_not_return(harness: Harness) -> None:
    producer, old = await harness.producer(), await harness.consumer("old", model_digest="a")
    client = harness.client(producer)
    job, assignment = await harness.running(producer, old)
    await old.emit([first_frame(assignment, 1, digest="a")])
    await old.requeue([assignment])
    other = await harness.consumer("other", model_digest="b")
    harness.redis.hset(f"{PREFIX}job:{job.job_id}", "queued_at", "0")
    assert await other._pull(4) == []  # a worker with the model still sends heartbeats
    assert client.final(job) is None
    harness.redis.zrem(f"{PREFIX}digests:m", "a")
    assert await other._pull(4) == []
    final = await client.receives_end(job)
    assert final.error
    assert final.error.code is ErrorCode.MODEL_CHANGED
    assert client.tokens(job) == (1,)
    assert not harness.keys("wait")
    await producer.submit(job, {})  # can be repeated, unlike other jobs that have ended
    [assignment] = await other._pull(4)
    assert (assignment.job, assignment.token_ids) == (job, ())


async def test_the_digest_of_an_output_survives_data_loss(harness: Harness) -> None:
    producer, old = await harness.producer(), await harness.consumer("old", model_digest="a")
    client = harness.client(producer)
    job, assignment = await harness.running(producer, old)
    await old.emit([first_frame(assignment, 1, digest="a")])
    await client.receives(job, 1)
    harness.redis.flushall()
    await producer.reap()
    other = await harness.consumer("other", model_digest="b")
    same = await harness.consumer("same", model_digest="a")
    await async_wait_until(lambda: harness.keys("wait:"), "the resync")
    assert await other._pull(4) == []
    assert [each.job for each in await same.pull(4)] == [job]
