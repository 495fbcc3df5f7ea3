"""A worker of two ranks answers as one of a single process does, and none of its jobs is lost with a rank."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator

import numpy as np
import psutil
import pytest
from llava_wire.messages.job import ImageRef

from tests.e2e.worker_process import Fleet
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient, connect_job_client

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

TINY = ("--model", "tiny", "--device", "cpu", "--precision", "fp32", "--threads", "1", "--lease-s", "1")
DIVIDED = (*TINY, "--tensor-parallel", "2")
QUESTIONS = ["How many things are there?", "What colour is it?", "Hi!", "Where is the square?"]
SIDE = 140  # pixels


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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


async def test_its_answers_are_those_of_a_single_process(client: JobClient, fleet: Fleet) -> None:
    whole = await fleet.start(*TINY).ready()
    expected = await answers(client)
    whole.send(signal.SIGTERM)
    assert await whole.ended() == 0

    divided = await fleet.start(*DIVIDED).ready()
    assert await answers(client) == expected
    (follower,) = divided.children
    divided.send(signal.SIGTERM)
    assert await divided.ended() == 0
    assert not psutil.pid_exists(follower)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_rank_ends_the_worker_and_its_answer_goes_on_elsewhere(
    client: JobClient, fleet: Fleet, number: signal.Signals
) -> None:
    """Killed, it is missed at once; stopped, by the watchdog of steps that do not end."""
    question, sampling = "Tell me a story.", {"max_tokens": 400, "temperature": 0.0, "ignore_eos": True}
    whole = await fleet.start(*TINY).ready()
    undisturbed = await client.wait_for_text(await client.submit(question, **sampling))
    whole.send(signal.SIGTERM)
    assert await whole.ended() == 0

    divided = await fleet.start(*DIVIDED, "--hang-timeout-s", "2").ready()
    (follower,) = divided.children
    job = await client.submit(question, **sampling)
    await async_wait_until(lambda: len(client.token_ids(job)) >= 5)
    os.kill(follower, number)
    assert await divided.ended() == 70
    assert client.final(job) is None
    if number is signal.SIGKILL:
        assert "rank 1 has ended with status -9" in divided.log
    await async_wait_until(lambda: not psutil.pid_exists(follower))  # stopped or not

    await fleet.start(*TINY).ready()
    assert await client.wait_for_text(job) == undisturbed


async def test_a_killed_worker_leaves_no_rank_behind(fleet: Fleet) -> None:
    divided = await fleet.start(*DIVIDED).ready()
    (follower,) = divided.children
    divided.send(signal.SIGKILL)
    await divided.ended()
    await async_wait_until(lambda: not psutil.pid_exists(follower))


async def test_a_model_that_cannot_be_divided_so_is_refused_with_a_sentence(fleet: Fleet) -> None:
    worker = fleet.start(*TINY, "--tensor-parallel", "3")
    assert await worker.ended() == 1
    assert "3 does not divide num_attention_heads 4" in worker.log
    assert "tensor_parallel 1, 2, 4" in worker.log
    assert "Traceback" not in worker.log
