"""Servers and workers with different versions: unknown fields, and jobs that require a newer worker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from llava_wire.messages.event import ErrorCode, Event, Final, FinishReason, JobError
from llava_wire.messages.job import WIRE_VERSION, Job
from llava_wire.redis.keys import PREFIX

from tests.wire.harness import STOP, Harness, frame, make_job

pytestmark = pytest.mark.anyio


async def submitted(harness: Harness, **changes: Any) -> tuple[Job, Any]:
    """Submit a job as a newer server would encode it. Return the job and its client."""
    producer, job = await harness.producer(), make_job()
    client = harness.client(producer)
    await producer.submit(job, {})
    newer = {**msgspec.to_builtins(job), **changes}
    harness.redis.hset(f"{PREFIX}job:{job.job_id}", "payload", msgspec.msgpack.encode(newer))
    return job, client


async def test_an_older_worker_ignores_an_unknown_field(harness: Harness) -> None:
    job, client = await submitted(harness, new_field=1)
    consumer = await harness.consumer()
    (assignment,) = await consumer.pull(1)
    assert assignment.job == job
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


@pytest.mark.parametrize("changes", [{"version": WIRE_VERSION + 1}, {"task": "transcribe"}], ids=str)
async def test_a_job_for_a_newer_worker_fails_and_the_next_job_is_served(
    harness: Harness, changes: dict[str, Any]
) -> None:
    job, client = await submitted(harness, **changes)
    consumer = await harness.consumer()
    assert await consumer.pull(4) == []
    final = await client.receives_end(job)
    assert final.error
    assert final.error.code is ErrorCode.WORKER_OUTDATED
    other, _ = await submitted(harness)
    assert [each.job for each in await consumer.pull(4)] == [other]


def test_a_job_has_version_1_by_default() -> None:
    assert make_job().version == 1 < WIRE_VERSION


async def test_only_the_job_that_cannot_run_fails(harness: Harness) -> None:
    first, _ = await submitted(harness)
    newer, client = await submitted(harness, version=WIRE_VERSION + 1)
    last, _ = await submitted(harness)
    consumer = await harness.consumer()
    assert [each.job for each in await consumer.pull(4)] == [first, last]
    assert (await client.receives_end(newer)).error


def test_an_unknown_error_code_is_decoded_as_an_internal_error() -> None:
    newer = msgspec.msgpack.encode(
        [0, [], "", {"reason": "error", "error": {"code": "new_code", "message": "no"}}]
    )
    event = msgspec.msgpack.decode(newer, type=Event)
    assert event.final == Final(reason=FinishReason.ERROR, error=JobError(ErrorCode.INTERNAL_ERROR, "no"))


def test_unknown_fields_in_an_event_are_ignored() -> None:
    newer = msgspec.msgpack.encode([4, [1, 2], "ab", None, [], 7, [], "digest", "more", 0.5])
    assert msgspec.msgpack.decode(newer, type=Event) == Event(
        4, (1, 2), "ab", num_prompt_tokens=7, model_digest="digest"
    )


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x81\xa6job_id\xa2\xff\xfe"])
@pytest.mark.parametrize("where", ["job", "log"])
async def test_a_job_that_cannot_be_decoded_fails_without_stopping_the_worker(
    harness: Harness, where: str, payload: bytes
) -> None:
    producer, job, second = await harness.producer(), make_job(), make_job()
    client = harness.client(producer)
    await producer.submit(job, {})
    if where == "job":
        harness.redis.hset(f"{PREFIX}job:{job.job_id}", "payload", payload)
    else:
        harness.redis.rpush(f"{PREFIX}log:{job.job_id}", payload)
        harness.redis.expire(f"{PREFIX}log:{job.job_id}", 60)
    await producer.submit(second, {})
    consumer = await harness.consumer()
    assert [each.job for each in await consumer.pull(2)] == [second]
    final = await client.receives_end(job)
    assert final.error is not None
