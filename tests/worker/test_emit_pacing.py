"""A worker holds tokens back while the next emit is not due, except for the first and the last of a job."""

from __future__ import annotations

from functools import partial

import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient
from tests.worker.running_worker import SteppedEngine, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]

NUM_TOKENS = 12


@pytest.fixture(autouse=True)
def _long_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delay paced tokens for much longer than the test takes."""
    monkeypatch.setattr("llava_wire.worker_side.emit_pacer.MAX_INTERVAL_S", 3600.0)
    monkeypatch.setattr("llava_wire.worker_side.emit_pacer.EMITS_PER_S", 0.001)


def has_tokens(client: JobClient, job_id: str, number: int) -> bool:
    return len(client.token_ids(job_id)) == number


async def step_slowly(engine: SteppedEngine) -> None:
    """Run a step and wait long enough that an emit that is due would be sent."""
    num_steps = engine.num_empty_steps + 4
    engine.allow_steps(1)
    await async_wait_until(lambda: engine.num_empty_steps > num_steps)


async def test_a_single_worker_emits_each_token_at_once(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url, is_stepped=True) as running:
        job = await client.submit("Hi?", max_tokens=NUM_TOKENS, ignore_eos=True)
        await async_wait_until(lambda: running.engine.num_sequences == 1)
        for number in range(1, NUM_TOKENS + 1):
            running.engine.allow_steps(1)
            await async_wait_until(partial(has_tokens, client, job, number))


async def test_a_worker_of_a_large_fleet_emits_the_first_and_the_last_token_at_once(
    queue_url: str, client: JobClient
) -> None:
    with redis.Redis.from_url(queue_url) as queue:
        queue.zadd(PREFIX + "progress", {f"other-{number}": 1e15 for number in range(99)})
    async with running_worker(queue_url, SteppedEngine(), is_stepped=True) as running:
        jobs = [
            await client.submit(text, max_tokens=NUM_TOKENS, ignore_eos=True) for text in ("Hi?", "Hello?")
        ]
        await async_wait_until(lambda: running.engine.num_sequences == 2)
        running.engine.allow_steps(1)
        await async_wait_until(lambda: all(has_tokens(client, job, 1) for job in jobs))
        for _ in range(NUM_TOKENS - 2):
            await step_slowly(running.engine)
        running.engine.run_freely()
        for job in jobs:
            await client.wait_for_final(job)
            assert [len(event.token_ids) for event in client.events[job]] == [1, NUM_TOKENS - 1]
