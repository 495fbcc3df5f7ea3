"""Scripted workers: real connections to the queue, and an engine that only counts tokens.

    python -m bench.fleet.workers '{"urls": [...], "num_shards": 1, "first": 0, "num_workers": 100, ...}'

Each worker generates one token for each of its jobs in every step.
"""

from __future__ import annotations

import asyncio
import random
import sys

import msgspec
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.heartbeat import Heartbeat, ImageSpec
from llava_wire.redis.shards import queue_shards
from llava_wire.worker_side.consumer import JobConsumer
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

__all__ = ["MODEL", "WorkersConfig"]

MODEL = "fleet"
_TEXT = " token"


class WorkersConfig(msgspec.Struct, frozen=True):
    """The workers of one process, numbered from ``first``. ``beat_s`` is the heartbeat interval."""

    urls: list[str]
    num_shards: int
    first: int
    num_workers: int
    num_slots: int
    step_s: float
    beat_s: float


class ScriptedWorker:
    """One worker. Its jobs are keyed by assignment ID, with the number of tokens generated so far."""

    def __init__(self, config: WorkersConfig, number: int) -> None:
        self._config = config
        self._heartbeat = Heartbeat(
            worker_id=f"worker-{number}",
            model=MODEL,
            image_spec=ImageSpec(side=2),
            context_length=4096,
            capacity=config.num_slots,
            device="cpu",
            precision="none",
        )
        self._jobs: dict[str, tuple[Assignment, int]] = {}
        self._slot_freed = asyncio.Event()

    async def run(self) -> None:
        config = self._config
        self._consumer = await ShardedConsumer.connect(
            queue_shards(config.urls, config.num_shards), self._heartbeat, lease_s=4 * config.beat_s
        )
        emit_loops = [self._emit(shard) for shard in self._consumer.shards]
        await asyncio.gather(self._pull(), self._beat(), *emit_loops)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._config.beat_s)
            await self._consumer.send_heartbeat()

    async def _pull(self) -> None:
        while True:
            self._slot_freed.clear()
            num_free = self._config.num_slots - len(self._jobs)
            if not num_free:
                await self._slot_freed.wait()
                continue
            for assignment in await self._consumer.pull(num_free):
                self._jobs[assignment.assignment_id] = assignment, len(assignment.token_ids)

    async def _emit(self, shard: JobConsumer) -> None:
        await asyncio.sleep(random.random() * self._config.step_s)  # workers are not synchronized
        while True:
            await asyncio.sleep(self._config.step_s)
            own = [
                (assignment, num_tokens)
                for assignment, num_tokens in self._jobs.values()
                if self._consumer.shard_of(assignment.job.job_id) is shard
            ]
            if own:
                await self._step(shard, own)

    async def _step(self, shard: JobConsumer, jobs: list[tuple[Assignment, int]]) -> None:
        events = []
        for assignment, num_tokens in jobs:
            is_last = num_tokens + 1 >= (assignment.job.sampling.max_tokens or 1)
            final = Final(reason=FinishReason.LENGTH) if is_last else None
            events.append((assignment, Event(num_tokens, (num_tokens,), _TEXT, final)))
            self._jobs[assignment.assignment_id] = assignment, num_tokens + 1
        result = await shard.emit(events)
        for assignment, event in events:
            if event.final or assignment.job.job_id in result.refused:
                self._jobs.pop(assignment.assignment_id, None)
                self._slot_freed.set()


async def _main(config: WorkersConfig) -> None:
    numbers = range(config.first, config.first + config.num_workers)
    await asyncio.gather(*(ScriptedWorker(config, number).run() for number in numbers))


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=WorkersConfig)))
