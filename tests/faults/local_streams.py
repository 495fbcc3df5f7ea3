"""Two controllers and three workers with echo engines in this process, and the streams between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import FinishReason
from llava_wire.messages.job import ImageRef, Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_wire.redis.shards import Shard
from llava_wire.worker_side.sharded_consumer import ShardedConsumer
from llava_worker.echo_engine import EchoEngine
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from llava_worker.worker import Worker

from tests.waiting import async_wait_until
from tests.wire.harness import Client, make_image

LEASE_S = 1.0
SIDE = 32
NUM_STREAMS, NUM_TOKENS, STEP_S = 16, 40, 0.01


class Streams:
    """Two controllers, three workers, and the streams between them."""

    def __init__(self, producers: list[JobProducer]) -> None:
        self._clients = [(producer, Client(producer)) for producer in producers]
        self._jobs: list[tuple[Job, Client]] = []

    async def submit(self, seed: int) -> None:
        for number in range(NUM_STREAMS):
            producer, client = self._clients[number % len(self._clients)]
            job, pixels = make_stream(number, seed)
            await producer.submit(job, pixels)
            self._jobs.append((job, client))

    async def has_begun(self, num_tokens: int) -> None:
        """Wait until the streams have received ``num_tokens`` tokens in total."""
        await async_wait_until(
            lambda: sum(len(client.tokens(job)) for job, client in self._jobs) >= num_tokens,
            "the first tokens",
        )

    async def texts(self) -> list[str]:
        """Return the texts of all streams after they have ended. Each must end normally, and only once."""
        texts = []
        for job, client in self._jobs:
            final = await client.receives_end(job)
            assert final.reason is FinishReason.LENGTH, final
            texts.append("".join(event.text for event in client.events[job.job_id]))
        self._jobs.clear()
        return texts

    async def close(self) -> None:
        for _, client in self._clients:
            await client.close()


def make_stream(number: int, seed: int) -> tuple[Job, dict[str, bytes]]:
    image, tiles = make_image(f"image {number % 4}", size=SIDE * SIDE * 3)
    ref = ImageRef(digest=image.digest, num_tiles=1, side=SIDE, width=SIDE, height=SIDE)
    parts = ("Describe it.", ref) if number % 2 else (f"Question {number}",)
    job = Job(
        job_id=f"job-{seed}-{number}",
        model="echo",
        tenant=f"tenant-{number % 3}",
        messages=(Message("user", parts),),
        sampling=SamplingParams(seed=number, max_tokens=NUM_TOKENS, ignore_eos=True),
        cost=10.0,
        priority=(0, 0, 1, -1)[number % 4],
    )
    return job, {ref.digest: tiles} if number % 2 else {}


@asynccontextmanager
async def running_streams(url: str) -> AsyncIterator[Streams]:
    async with AsyncExitStack() as stack:
        producers = [await JobProducer.connect(url, lease_s=LEASE_S, check_interval_s=LEASE_S) for _ in "ab"]
        tasks = [asyncio.create_task(reap_periodically(producer)) for producer in producers]
        workers = [await stack.enter_async_context(running_worker(url)) for _ in range(3)]
        streams = Streams(producers)
        try:
            yield streams
            assert not any(task.done() for task in (*tasks, *workers))
        finally:
            await streams.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for producer in producers:
                await producer.aclose()


async def reap_periodically(producer: JobProducer) -> None:
    while True:
        with contextlib.suppress(QueueUnavailable):
            await producer.reap()
        await asyncio.sleep(LEASE_S / 5)


@asynccontextmanager
async def running_worker(url: str) -> AsyncIterator[asyncio.Task[Any]]:
    model = open_model(load_settings(["--model", "echo"]))
    consumer = await ShardedConsumer.connect([Shard(url)], model.heartbeat, lease_s=LEASE_S)
    engine = EchoEngine(max_sequences=4, step_s=STEP_S)
    worker = Worker(
        consumer,
        engine,
        prompts=model.prompts,
        tokenizer=model.tokenizer,
        heartbeat=model.heartbeat,
        beat_s=LEASE_S / 4,
    )
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.aclose()
