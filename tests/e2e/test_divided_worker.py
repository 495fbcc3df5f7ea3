"""A worker of two ranks answers as one of a single process does, and none of its jobs is lost with a rank."""

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

WHOLE = {**TINY, "lease_s": 1}
DIVIDED = {**WHOLE, "tensor_parallel": 2}
QUESTIONS = ["How many things are there?", "What colour is it?", "Hi!", "Where is the square?"]
SIDE = 140  # pixels


@pytest.fixture
async def client(queue_url: str) -> AsyncIterator[JobClient]:
    async with connect_job_client(queue_url, model="tiny-llava") as client:
        yield client


async def answers(client: JobClient) -> list[str]:
    """To all questions at once, each second one about a picture."""
    noise = np.random.default_rng(3)
    jobs = []
    for number, question in enumerate(QUESTIONS):
        if number % 2:
            jobs.append(await client.submit(question, max_tokens=24, temperature=0.0, ignore_eos=True))
            continue
        tile = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8).tobytes()
        picture = ImageRef(digest=f"p{number}", num_tiles=1, side=SIDE, width=SIDE, height=SIDE)
        parts = (picture, question)
        pixels = {picture.digest: tile}
        jobs.append(
            await client.submit(*parts, pixels=pixels, max_tokens=24, temperature=0.0, ignore_eos=True)
        )
    return [await client.wait_for_text(job) for job in jobs]


async def test_its_answers_are_those_of_a_single_process(
    client: JobClient, start_worker: StartWorker
) -> None:
    whole = await start_worker(**WHOLE).ready()
    expected = await answers(client)
    whole.send(signal.SIGTERM)
    assert await whole.async_wait() == 0

    divided = await start_worker(**DIVIDED).ready()
    assert await answers(client) == expected
    (follower,) = divided.children
    divided.send(signal.SIGTERM)
    assert await divided.async_wait() == 0
    assert not psutil.pid_exists(follower)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_rank_ends_the_worker_and_its_answer_goes_on_elsewhere(
    client: JobClient, start_worker: StartWorker, number: signal.Signals
) -> None:
    """Killed, it is missed at once; stopped, by the watchdog of steps that do not end."""
    question = "Tell me a story."
    sampling: dict[str, Any] = {"max_tokens": 400, "temperature": 0.0, "ignore_eos": True}
    divided = await start_worker(**DIVIDED, hang_timeout_s=2).ready()
    (follower,) = divided.children
    job = await client.submit(question, **sampling)
    await async_wait_until(lambda: len(client.token_ids(job)) >= 5)
    os.kill(follower, number)
    assert await divided.async_wait() == 70
    assert client.final(job) is None
    if number is signal.SIGKILL:
        assert "rank 1 exited with status -9" in divided.log
    await async_wait_until(lambda: not psutil.pid_exists(follower))  # stopped or not

    start_worker(**WHOLE)
    answer = await client.wait_for_text(job)
    assert answer == await client.wait_for_text(await client.submit(question, **sampling))  # undisturbed


async def test_a_killed_worker_leaves_no_rank_behind(start_worker: StartWorker) -> None:
    divided = await start_worker(**DIVIDED).ready()
    (follower,) = divided.children
    divided.send(signal.SIGKILL)
    await divided.async_wait()
    await async_wait_until(lambda: not psutil.pid_exists(follower))


async def test_a_model_that_cannot_be_divided_so_is_refused_with_a_sentence(
    start_worker: StartWorker,
) -> None:
    worker = start_worker(**WHOLE, tensor_parallel=3)
    assert await worker.async_wait() == 1
    assert "3 does not divide num_attention_heads 4" in worker.log
    assert "tensor_parallel 1, 2, 4" in worker.log
    assert "Traceback" not in worker.log
