"""Streams survive when a worker is killed, is drained or hangs, even if it is the only worker.

Their texts must be identical to those of uninterrupted streams.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from llava_wire.messages.event import FinishReason

from tests.echo import echo_text
from tests.processes import StartWorker, WorkerProcess, worker_factory
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient, connect_job_client

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NUM_STREAMS = 8
MAX_TOKENS = 60
# With six slots per worker, eight streams occupy both workers.
SLOW = {"echo_step_s": 0.02, "lease_s": 1, "max_num_sequences": 6}
QUESTIONS = [f"Write story number {number}." for number in range(NUM_STREAMS)]


@pytest.fixture
async def client(queue_url: str) -> AsyncIterator[JobClient]:
    async with connect_job_client(queue_url) as client:
        yield client


async def start_streams(client: JobClient) -> list[str]:
    """Start eight streams and wait until each has at least five tokens. Return the job IDs."""
    jobs = [
        await client.submit(question, max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
        for question in QUESTIONS
    ]
    await async_wait_until(lambda: all(len(client.token_ids(job)) >= 5 for job in jobs))
    assert not any(client.final(job) for job in jobs)
    return jobs


async def assert_uninterrupted(client: JobClient, jobs: list[str]) -> None:
    for job, question in zip(jobs, QUESTIONS, strict=True):
        final = await client.wait_for_final(job)
        assert final.error is None
        assert final.reason is FinishReason.LENGTH
        assert len(client.token_ids(job)) == MAX_TOKENS
        assert client.text(job) == echo_text(question, max_tokens=MAX_TOKENS)


async def two_workers(start_worker: StartWorker) -> tuple[WorkerProcess, WorkerProcess]:
    first, second = start_worker(**SLOW), start_worker(**SLOW)
    return await first.ready(), await second.ready()


async def test_eight_streams_survive_the_kill_of_one_of_two_workers(
    client: JobClient, start_worker: StartWorker
) -> None:
    first, _ = await two_workers(start_worker)
    jobs = await start_streams(client)
    first.send(signal.SIGKILL)
    await assert_uninterrupted(client, jobs)
    assert await first.async_wait() == -signal.SIGKILL


async def test_eight_streams_survive_the_drain_of_one_of_two_workers(
    client: JobClient, start_worker: StartWorker
) -> None:
    first, _ = await two_workers(start_worker)
    jobs = await start_streams(client)
    first.send(signal.SIGTERM)
    assert await first.async_wait() == 0
    await assert_uninterrupted(client, jobs)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_streams_of_the_only_worker_resume_when_a_new_worker_starts(
    client: JobClient, start_worker: StartWorker, number: signal.Signals
) -> None:
    only = await start_worker(echo_step_s=0.02, lease_s=1).ready()
    jobs = await start_streams(client)
    only.send(number)
    await only.async_wait()
    assert not any(client.final(job) for job in jobs)
    await start_worker(lease_s=1).ready()
    await assert_uninterrupted(client, jobs)


async def test_a_worker_with_a_hung_engine_exits_and_its_streams_are_resumed(
    client: JobClient, start_worker: StartWorker
) -> None:
    hanging = await start_worker(echo_faults=True, hang_timeout_s=0.5, lease_s=1).ready()
    question = "Hi? [[hang at 20]]"
    job = await client.submit(question, max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
    assert await hanging.async_wait() == 70
    assert "current step exceeded 0.5 s" in hanging.log
    await start_worker(lease_s=1).ready()
    assert await client.wait_for_text(job) == echo_text(question, max_tokens=MAX_TOKENS)


async def test_a_crashing_engine_ends_its_worker_and_its_streams_are_resumed(
    client: JobClient, start_worker: StartWorker
) -> None:
    crashing = await start_worker(echo_faults=True, lease_s=1).ready()
    question = "Hi? [[crash at 20]]"
    job = await client.submit(question, max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
    assert await crashing.async_wait() == 139
    await start_worker(lease_s=1).ready()
    assert await client.wait_for_text(job) == echo_text(question, max_tokens=MAX_TOKENS)


async def test_a_second_signal_ends_a_draining_worker_immediately(
    client: JobClient, start_worker: StartWorker
) -> None:
    worker = await start_worker(echo_step_s=0.02, drain_timeout_s=600).ready()
    job = await client.submit("Hi?", max_tokens=4000, ignore_eos=True)
    await async_wait_until(lambda: bool(client.token_ids(job)))
    worker.send(signal.SIGTERM)
    await async_wait_until(lambda: "draining" in worker.log)
    assert worker.status is None
    worker.send(signal.SIGTERM)
    assert await worker.async_wait() == 128 + signal.SIGTERM


async def test_a_worker_without_a_queue_exits_with_a_message(tmp_path: Path) -> None:
    with worker_factory("unix:///nowhere/queue.sock", tmp_path) as start_worker:
        worker = start_worker()
        assert await worker.async_wait() == 69
        assert "Redis is unavailable" in worker.log
        assert "Traceback" not in worker.log


async def test_a_worker_without_its_model_exits_with_a_message(start_worker: StartWorker) -> None:
    worker = start_worker(model="/nowhere")
    assert await worker.async_wait() == 1
    assert "is not a folder" in worker.log
    assert "Traceback" not in worker.log
