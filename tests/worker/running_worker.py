"""A worker on a real queue, with an in-process echo engine that tests can step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from llava_wire.redis.shards import Shard
from llava_wire.worker_side.sharded_consumer import ShardedConsumer
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import EngineStats, Sequence, StepOutput
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.tokenizer import Tokenizer
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from llava_worker.worker import Worker

LEASE_S = 0.5


class SteppedEngine:
    """An echo engine that runs only as many steps as a test allows, so that streams stop at a known token."""

    def __init__(self, *, max_sequences: int = 16) -> None:
        self.echo = EchoEngine(max_sequences=max_sequences, has_faults=True)
        self.max_sequences = max_sequences
        self.context_length = self.echo.context_length
        self.num_sequences = 0
        self.num_added = 0
        self.num_empty_steps = 0
        self._allowed_steps = threading.Semaphore(0)
        self._is_running_freely = False

    def bind_thread(self) -> None:
        self.echo.bind_thread()

    def add(self, sequence: Sequence) -> None:
        self.echo.add(sequence)
        self.num_sequences = self.echo.num_sequences
        self.num_added += 1

    def abort(self, seq_id: str) -> None:
        self.echo.abort(seq_id)
        self.num_sequences = self.echo.num_sequences

    def step(self) -> list[StepOutput]:
        """Run a step if one is allowed. Otherwise return no outputs, so that aborts are still processed."""
        if not self._is_running_freely and not self._allowed_steps.acquire(timeout=0.005):
            self.num_empty_steps += 1
            return []
        outputs = self.echo.step()
        self.num_sequences = self.echo.num_sequences
        return outputs

    def idle(self) -> bool:
        return self.echo.idle()

    def stats(self) -> EngineStats:
        return self.echo.stats()

    def allow_steps(self, num_steps: int) -> None:
        self._allowed_steps.release(num_steps)

    def run_freely(self) -> None:
        self._is_running_freely = True


@dataclass
class RunningWorker:
    worker: Worker
    engine: SteppedEngine
    task: asyncio.Task[int]

    async def drain(self) -> int:
        """Drain the worker and return its exit status."""
        self.worker.drain()
        return await self.task


@asynccontextmanager
async def running_worker(
    url: str,
    engine: SteppedEngine | None = None,
    *,
    is_stepped: bool = False,
    drain_timeout_s: float = 0.0,
    hang_timeout_s: float = 30.0,
    grammars: GrammarCache | None = None,
    prompts: PromptBuilder | None = None,
    tokenizer: Tokenizer | None = None,
) -> AsyncIterator[RunningWorker]:
    """Run a worker for the duration of the block. Its engine runs freely unless ``is_stepped`` is true."""
    engine = engine or SteppedEngine()
    if not is_stepped:
        engine.run_freely()
    model = open_model(load_settings(["--model", "echo"]))
    consumer = await ShardedConsumer.connect(
        [Shard(url)], model.heartbeat, lease_s=LEASE_S, hang_timeout_s=hang_timeout_s
    )
    worker = Worker(
        consumer,
        engine,
        prompts=prompts or model.prompts,
        tokenizer=tokenizer or model.tokenizer,
        heartbeat=model.heartbeat,
        beat_s=LEASE_S / 4,
        drain_timeout_s=drain_timeout_s,
        grammars=grammars,
    )
    task = asyncio.create_task(worker.run())
    try:
        yield RunningWorker(worker, engine, task)
    finally:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.aclose()
