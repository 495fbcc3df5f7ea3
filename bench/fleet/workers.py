"""Scripted workers: real connections to the queue, and an engine that only counts tokens.

    python -m bench.fleet.workers '{"urls": [...], "num_shards": 1, "first": 0, "num_workers": 100, ...}'

Each worker generates one token for each of its jobs in every step. It calls the queue like a real worker: it
emits, pulls, requests overflow jobs, reconciles and sends heartbeats. All its intervals are multiplied by
``slowdown``.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass

import msgspec
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.heartbeat import Heartbeat, ImageSpec
from llava_wire.redis.shards import queue_shards
from llava_wire.worker_side.consumer import JobConsumer
from llava_wire.worker_side.emit_pacer import MAX_INTERVAL_S, EmitPacer
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

__all__ = ["BEAT_S", "LEASE_S", "MODEL", "STEP_S", "WorkersConfig", "scripted_heartbeat"]

MODEL = "fleet"
# Intervals of a real worker.
STEP_S = 0.03
BEAT_S = 1.0
LEASE_S = 5.0
_HANG_S = 30.0
_RECONCILE_S = 3.0
_TEXT = " token"
_STATS = {f"statistic_{number}": 1234.5 for number in range(40)}  # about as many as a real heartbeat contains


class WorkersConfig(msgspec.Struct, frozen=True):
    """The workers of one process, numbered from ``first``.

    If ``is_paced`` is false, they emit after every step.
    """

    urls: list[str]
    num_shards: int
    first: int
    num_workers: int
    num_slots: int
    slowdown: float
    is_paced: bool


@dataclass
class RunningJob:
    """``num_emitted`` tokens of ``num_tokens`` have been emitted."""

    assignment: Assignment
    num_emitted: int
    num_tokens: int
    has_event: bool = False

    @property
    def is_finished(self) -> bool:
        return self.num_tokens >= (self.assignment.job.sampling.max_tokens or 1)

    @property
    def is_urgent(self) -> bool:
        return self.is_finished or not self.has_event

    def next_event(self) -> Event | None:
        num_new = self.num_tokens - self.num_emitted
        if not num_new:
            return None
        ids = tuple(range(self.num_emitted, self.num_tokens))
        final = Final(reason=FinishReason.LENGTH) if self.is_finished else None
        event = Event(self.num_emitted, ids, _TEXT * num_new, final)
        self.num_emitted, self.has_event = self.num_tokens, True
        return event


def scripted_heartbeat(number: int, num_slots: int) -> Heartbeat:
    return Heartbeat(
        worker_id=f"worker-{number}",
        model=MODEL,
        image_spec=ImageSpec(side=2),
        context_length=4096,
        capacity=num_slots,
        device="cpu",
        precision="none",
        stats=_STATS,
    )


class ScriptedWorker:
    """One worker. Its jobs are keyed by assignment ID. ``_num_running`` of them have not finished."""

    def __init__(self, config: WorkersConfig, number: int) -> None:
        self._config = config
        self._heartbeat = scripted_heartbeat(number, config.num_slots)
        self._jobs: dict[str, RunningJob] = {}
        self._slot_freed = asyncio.Event()

    @property
    def _num_free(self) -> int:
        return self._config.num_slots - sum(not job.is_finished for job in self._jobs.values())

    async def run(self) -> None:
        config = self._config
        self._consumer = await ShardedConsumer.connect(
            queue_shards(config.urls, config.num_shards),
            self._heartbeat,
            lease_s=LEASE_S * config.slowdown,
            hang_timeout_s=_HANG_S * config.slowdown,
        )
        self._has_outputs = {shard: asyncio.Event() for shard in self._consumer.shards}
        emit_loops = [self._emit_loop(shard) for shard in self._consumer.shards]
        await asyncio.gather(self._pull_loop(), self._heartbeat_loop(), self._run_engine(), *emit_loops)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._config.slowdown)

    async def _heartbeat_loop(self) -> None:
        await self._sleep(random.random() * BEAT_S)  # workers are not synchronized
        while True:
            await self._consumer.send_heartbeat()
            await self._sleep(BEAT_S)

    async def _pull_loop(self) -> None:
        next_reconcile = time.monotonic() + random.random() * _RECONCILE_S * self._config.slowdown
        while True:
            self._slot_freed.clear()
            if self._num_free > 0:
                self._start(await self._consumer.pull(self._num_free))
            else:
                with_timeout = asyncio.wait_for(self._slot_freed.wait(), _RECONCILE_S * self._config.slowdown)
                await asyncio.gather(with_timeout, return_exceptions=True)
            while self._has_overflow_slot() and (assignments := await self._consumer.pull_overflow()):
                self._start(assignments)
            if time.monotonic() >= next_reconcile:
                held = [job.assignment.job.job_id for job in self._jobs.values()]
                self._drop(await self._consumer.reconcile(held))
                next_reconcile = time.monotonic() + _RECONCILE_S * self._config.slowdown

    def _has_overflow_slot(self) -> bool:
        return 0 <= -self._num_free < max(1, self._config.num_slots // 4)

    def _start(self, assignments: list[Assignment]) -> None:
        for each in assignments:
            num_tokens = len(each.token_ids)
            self._jobs[each.assignment_id] = RunningJob(each, num_tokens, num_tokens)

    def _drop(self, job_ids: set[str]) -> None:
        for assignment_id, job in list(self._jobs.items()):
            if job.assignment.job.job_id in job_ids:
                del self._jobs[assignment_id]
                self._slot_freed.set()

    async def _run_engine(self) -> None:
        await self._sleep(random.random() * STEP_S)
        while True:
            await self._sleep(STEP_S)
            for job in self._jobs.values():
                if job.is_finished:
                    continue  # its last event is being emitted
                job.num_tokens += 1
                self._has_outputs[self._consumer.shard_of(job.assignment.job.job_id)].set()
                if job.is_finished:
                    self._slot_freed.set()

    async def _emit_loop(self, shard: JobConsumer) -> None:
        """Emit like ``Worker._emit_loop``."""
        pacer = EmitPacer(shard, slowdown=self._config.slowdown if self._config.is_paced else 0.0)
        has_outputs = self._has_outputs[shard]
        await self._sleep(random.random() * MAX_INTERVAL_S)  # workers are not synchronized
        while True:
            await has_outputs.wait()
            has_outputs.clear()
            is_due = not pacer.delay_s
            events = [
                (job.assignment, event)
                for job in list(self._jobs.values())
                if self._consumer.shard_of(job.assignment.job.job_id) is shard
                and (is_due or job.is_urgent)
                and (event := job.next_event())
            ]
            if not events:
                continue
            if is_due:
                pacer.begin()
            result = await shard.emit(events, check_overflow=is_due and self._has_overflow_slot())
            ended = {assignment.job.job_id for assignment, event in events if event.final}
            self._drop(ended | result.refused)
            if result.has_overflow_waiting:
                self._slot_freed.set()


async def _main(config: WorkersConfig) -> None:
    numbers = range(config.first, config.first + config.num_workers)
    await asyncio.gather(*(ScriptedWorker(config, number).run() for number in numbers))


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=WorkersConfig)))
