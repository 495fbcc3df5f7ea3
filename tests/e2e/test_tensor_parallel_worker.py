"""Tensor-parallel workers: outputs equal those of a single process, and no job is lost when a rank fails."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import psutil
import pytest
from llava_wire.messages.job import ImageRef

from tests.e2e.conftest import TINY
from tests.processes import StartWorker
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient, connect_job_client

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SINGLE = {**TINY, "lease_s": 1}
PARALLEL = {**SINGLE, "tensor_parallel": 2}
QUESTIONS = ["How many things are there?", "What color is it?", "Hi!", "Where is the square?"]
SIDE = 140  # pixels


@pytest.fixture
async def client(queue_url: str) -> AsyncIterator[JobClient]:
    async with connect_job_client(queue_url, model="tiny-llava") as client:
        yield client


async def outputs(client: JobClient) -> list[str]:
    """Submit all questions concurrently, every other one with an image. Return the outputs."""
    noise = np.random.default_rng(3)
    jobs = []
    for number, question in enumerate(QUESTIONS):
        if number % 2:
            jobs.append(await client.submit(question, max_tokens=24, temperature=0.0, ignore_eos=True))
            continue
        tile = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8).tobytes()
        image = ImageRef(digest=f"p{number}", num_tiles=1, side=SIDE, width=SIDE, height=SIDE)
        parts = (image, question)
        pixels = {image.digest: tile}
        jobs.append(
            await client.submit(*parts, pixels=pixels, max_tokens=24, temperature=0.0, ignore_eos=True)
        )
    return [await client.wait_for_text(job) for job in jobs]


async def test_outputs_equal_those_of_a_single_process(client: JobClient, start_worker: StartWorker) -> None:
    single = await start_worker(**SINGLE).ready()
    expected = await outputs(client)
    single.send(signal.SIGTERM)
    assert await single.async_wait() == 0

    parallel = await start_worker(**PARALLEL).ready()
    assert await outputs(client) == expected
    (follower,) = parallel.children
    parallel.send(signal.SIGTERM)
    assert await parallel.async_wait() == 0
    assert not psutil.pid_exists(follower)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_rank_ends_the_worker_and_another_worker_resumes_its_job(
    client: JobClient, start_worker: StartWorker, number: signal.Signals
) -> None:
    """A killed rank is detected immediately. A stopped rank is detected by the hang watchdog."""
    question = "Write a story."
    sampling: dict[str, Any] = {"max_tokens": 400, "temperature": 0.0, "ignore_eos": True}
    parallel = await start_worker(**PARALLEL, hang_timeout_s=2).ready()
    (follower,) = parallel.children
    job = await client.submit(question, **sampling)
    await async_wait_until(lambda: len(client.token_ids(job)) >= 5)
    os.kill(follower, number)
    assert await parallel.async_wait() == 70
    assert client.final(job) is None
    if number is signal.SIGKILL:
        assert "rank 1 exited with status -9" in parallel.log
    await async_wait_until(lambda: not psutil.pid_exists(follower))  # even if SIGSTOP stopped it

    start_worker(**SINGLE)
    resumed = await client.wait_for_text(job)
    uninterrupted = await client.wait_for_text(await client.submit(question, **sampling))
    assert resumed == uninterrupted


async def test_a_killed_worker_leaves_no_rank_behind(start_worker: StartWorker) -> None:
    parallel = await start_worker(**PARALLEL).ready()
    (follower,) = parallel.children
    parallel.send(signal.SIGKILL)
    await parallel.async_wait()
    await async_wait_until(lambda: not psutil.pid_exists(follower))


async def test_an_unsupported_number_of_ranks_is_rejected_with_a_message(
    start_worker: StartWorker,
) -> None:
    worker = start_worker(**SINGLE, tensor_parallel=3)
    assert await worker.async_wait() == 1
    assert "3 does not divide num_attention_heads 4" in worker.log
    assert "tensor_parallel: 1, 2, 4" in worker.log
    assert "Traceback" not in worker.log
