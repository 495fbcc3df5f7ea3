"""An emit never delays a step: a slow path to the queue leaves the engine's own rhythm as it is."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from pathlib import Path

import pytest
from llava_wire.worker_side.consumer import JobConsumer
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import StepOutput
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from llava_worker.worker import Worker

from tests.faults.proxy import FaultProxy
from tests.wire.redis_server import running_redis
from tests.worker.job_client import connect_job_client

pytestmark = pytest.mark.anyio

STEP_S = 0.02
NUM_STEPS = 100
DELAY_S = 0.2


class ClockedEngine(EchoEngine):
    """Notes when each of its steps began."""

    def __init__(self) -> None:
        super().__init__(step_s=STEP_S)
        self.began: list[float] = []

    def step(self) -> list[StepOutput]:
        self.began.append(time.perf_counter())
        return super().step()

    @property
    def median_step_s(self) -> float:
        """From the beginning of a step to the beginning of the next."""
        return statistics.median(later - former for former, later in itertools.pairwise(self.began))


async def answered(url: str, path: FaultProxy, delay_s: float) -> tuple[ClockedEngine, int]:
    """The engine that gave one answer over a path so slow, and in how many emits it left."""
    model, engine = open_model(load_settings(["--model", "echo"])), ClockedEngine()
    consumer = await JobConsumer.connect(path.url, model.heartbeat)
    worker = Worker(
        consumer, engine, prompts=model.prompts, tokenizer=model.tokenizer, heartbeat=model.heartbeat
    )
    running = asyncio.create_task(worker.run())
    async with connect_job_client(url) as client:
        path.delay(delay_s)
        job_id = await client.submit("Tell me.", temperature=0, max_tokens=NUM_STEPS, ignore_eos=True)
        await client.wait_for_final(job_id, 60)
        path.heal()
        worker.drain()
        assert await running == 0
    await consumer.aclose()
    return engine, len(client.events[job_id])


async def test_200_ms_on_each_command_change_no_engine_step() -> None:
    with running_redis() as url:
        path = FaultProxy(Path(url.removeprefix("unix://")))
        try:
            plain, num_emits = await answered(url, path, 0.0)
            slowed, num_slow_emits = await answered(url, path, DELAY_S)
        finally:
            path.close()
    assert len(plain.began) == len(slowed.began) == NUM_STEPS
    assert num_emits > NUM_STEPS / 2
    assert num_slow_emits < NUM_STEPS / 4  # what waits for a slow emit leaves together with the next
    assert slowed.median_step_s <= plain.median_step_s * 1.1
