"""An emit never delays a step: the engine continues while the connection to the queue is stalled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from llava_wire.redis.shards import Shard
from llava_wire.worker_side.sharded_consumer import ShardedConsumer
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import StepOutput
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from llava_worker.worker import Worker

from tests.faults.proxy import FaultProxy
from tests.waiting import async_wait_until
from tests.wire.redis_server import running_redis
from tests.worker.job_client import JobClient, connect_job_client

pytestmark = pytest.mark.anyio

NUM_TOKENS = 100


class SteppedEngine(EchoEngine):
    """An engine that runs one step per permit."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)
        self.num_steps = 0

    def step(self) -> list[StepOutput]:
        self.permits.acquire()
        outputs = super().step()
        self.num_steps += 1
        return outputs


@pytest.fixture
def queue() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def path(queue: str) -> Iterator[FaultProxy]:
    path = FaultProxy(Path(queue.removeprefix("unix://")))
    yield path
    path.close()


@asynccontextmanager
async def stepped_worker(path: FaultProxy) -> AsyncIterator[SteppedEngine]:
    """Run a worker that connects to the queue through ``path``. Yield its engine."""
    model, engine = open_model(load_settings(["--model", "echo"])), SteppedEngine()
    consumer = await ShardedConsumer.connect([Shard(path.url)], model.heartbeat)
    worker = Worker(
        consumer, engine, prompts=model.prompts, tokenizer=model.tokenizer, heartbeat=model.heartbeat
    )
    running = asyncio.create_task(worker.run())
    yield engine
    worker.drain()
    assert await running == 0
    await consumer.aclose()


async def submit(client: JobClient, engine: SteppedEngine) -> str:
    """Submit a job, wait for its first token and return the job ID."""
    job_id = await client.submit("Tell me.", temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    engine.permits.release()
    await async_wait_until(lambda: client.events[job_id], "the first token")
    return job_id


async def test_no_engine_step_waits_for_the_queue(queue: str, path: FaultProxy) -> None:
    async with connect_job_client(queue) as client, stepped_worker(path) as engine:
        job_id = await submit(client, engine)
        path.stall()
        engine.permits.release(NUM_TOKENS - 1)
        await async_wait_until(lambda: engine.num_steps == NUM_TOKENS, "all steps")
        assert len(client.token_ids(job_id)) == 1
        path.heal()
        await client.wait_for_final(job_id)
        assert len(client.token_ids(job_id)) == NUM_TOKENS
        assert len(client.events[job_id]) <= 4  # waiting tokens are sent together in the next emit


async def test_each_token_is_emitted_separately_without_delay(queue: str, path: FaultProxy) -> None:
    async with connect_job_client(queue) as client, stepped_worker(path) as engine:
        job_id = await submit(client, engine)
        for number in range(2, NUM_TOKENS + 1):
            engine.permits.release()
            await async_wait_until(lambda: len(client.events[job_id]) == number, "the next token")  # noqa: B023
        assert [len(event.token_ids) for event in client.events[job_id]] == [1] * NUM_TOKENS
