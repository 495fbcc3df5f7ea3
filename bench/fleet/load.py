"""A controller with a constant number of unfinished jobs, and what it measures.

    python -m bench.fleet.load '{"urls": [...], "num_shards": 1, "num_jobs": 320, ...}'

It prints "measuring" once the workers are busy, "measured" at the end of the measurement, and finally a
`LoadResult` as JSON.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.messages.job import Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_wire.redis.shards import queue_shards
from llava_wire.worker_side.emit_pacer import MAX_INTERVAL_S

from bench.fleet.workers import LEASE_S, MODEL

__all__ = ["LoadConfig", "LoadResult", "fleet_job"]

_NO_LIMIT = 10**9
_BEAT_S = 1.0  # interval at which a real controller calls ``reap`` and reads the heartbeats
_CHECK_S = 5.0  # time after which it checks an idle job
_SETTLING_S = MAX_INTERVAL_S  # after which all workers have emitted
_POLL_S = 0.5
_STALL_S = 60.0
_SUBMITTERS = 8
_BUSY = 0.95


class LoadConfig(msgspec.Struct, frozen=True):
    """The load of one controller: ``num_jobs`` unfinished jobs of ``num_tenants`` tenants.

    The first ``num_running`` jobs have random lengths up to ``max_tokens``, as if they had been running for a
    while. The measurement begins once all jobs have been submitted, and takes ``seconds``. If ``drains`` is
    true, the controller then waits for all jobs to finish. Intervals are multiplied by ``slowdown``.
    """

    urls: list[str]
    num_shards: int
    num_jobs: int
    num_running: int
    num_tenants: int
    max_tokens: int
    seconds: float
    slowdown: float
    drains: bool


class LoadResult(msgspec.Struct, frozen=True):
    """``fairness`` is Jain's index of the tokens that the tenants received (1: all received the same).

    ``first_event_ms`` is in the time of the simulated fleet. ``num_wrong`` counts the jobs that did not
    receive exactly their tokens, and ``num_lost`` those that did not end, including the time after the
    measurement if ``drains`` is true.
    """

    num_tokens: int
    num_jobs: int
    num_errors: int
    num_wrong: int
    num_lost: int | None
    seconds: float
    submit_ms: tuple[float, float]  # median and 99th percentile
    first_event_ms: tuple[float, float]
    fairness: float


def fleet_job(tenant: str, max_tokens: int) -> Job:
    return Job(
        job_id=f"chatcmpl-{secrets.token_hex(16)}",
        model=MODEL,
        tenant=tenant,
        messages=(Message("user", ("What is in the image? " * 8,)),),
        sampling=SamplingParams(seed=1, max_tokens=max_tokens),
        cost=float(max_tokens),
        ttl_s=3600.0,
    )


class LiveJob(msgspec.Struct):
    tenant: str
    max_tokens: int
    submitted_at: float
    num_tokens: int = 0
    is_exact: bool = True  # whether each event began where the previous one ended
    has_event: bool = False


class Load:
    """The controller. Every finished job is replaced by a new one of the same tenant."""

    def __init__(self, producer: ShardedProducer, config: LoadConfig) -> None:
        self._producer = producer
        self._config = config
        self._to_submit: asyncio.Queue[tuple[str, int]] = asyncio.Queue()  # tenant, maximum number of tokens
        self._live: dict[str, LiveJob] = {}
        self._is_draining = False
        self._num_errors = self._num_wrong = 0
        self._reset()

    def _reset(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._submit_s: list[float] = []
        self._first_event_s: list[float] = []
        self._num_finished = 0
        self._began = time.monotonic()

    async def run(self) -> LoadResult:
        config = self._config
        for number in range(config.num_jobs):
            max_tokens = random.randint(1, config.max_tokens)
            is_first = number < config.num_running
            tenant = f"tenant-{number % config.num_tenants}"
            self._to_submit.put_nowait((tenant, max_tokens if is_first else config.max_tokens))
        tasks = [asyncio.create_task(self._submit()) for _ in range(_SUBMITTERS)]
        tasks.append(asyncio.create_task(self._poll_workers()))
        for shard in self._producer.shards:
            tasks += [asyncio.create_task(self._follow(shard)), asyncio.create_task(self._reap(shard))]
        while not await self._has_started():
            await asyncio.sleep(_POLL_S)
            _raise_error(tasks)
        await asyncio.sleep(_SETTLING_S * config.slowdown)
        self._reset()
        print("measuring", flush=True)
        await asyncio.wait(tasks, timeout=config.seconds, return_when=asyncio.FIRST_EXCEPTION)
        _raise_error(tasks)
        result = self._result()
        print("measured", flush=True)
        if config.drains:
            await self._drain(tasks)
            result = msgspec.structs.replace(
                result, num_errors=self._num_errors, num_wrong=self._num_wrong, num_lost=len(self._live)
            )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return result

    async def _has_started(self) -> bool:
        """Return whether all jobs have been submitted, and almost all that should run are running."""
        num_running = sum((await self._producer.stats()).num_running.values())
        return len(self._live) >= self._config.num_jobs and num_running >= _BUSY * self._config.num_running

    async def _drain(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Wait until no job is left, or until none has finished for a while."""
        self._is_draining = True
        num_finished, deadline = -1, 0.0
        while self._live and (num_finished < self._num_finished or time.monotonic() < deadline):
            if num_finished < self._num_finished:
                num_finished, deadline = self._num_finished, time.monotonic() + _STALL_S
            await asyncio.sleep(_POLL_S)
            _raise_error(tasks)

    async def _submit(self) -> None:
        while True:
            tenant, max_tokens = await self._to_submit.get()
            if self._is_draining:
                continue
            job = fleet_job(tenant, max_tokens)
            began = time.monotonic()
            self._live[job.job_id] = LiveJob(tenant, max_tokens, began)
            await self._producer.shard(job.job_id).submit(job, {})
            self._submit_s.append(time.monotonic() - began)

    async def _follow(self, shard: JobProducer) -> None:
        async for batch in shard.follow():
            now = time.monotonic()
            for job_id, event in batch:
                live = self._live[job_id]
                if not live.has_event:
                    live.has_event = True
                    self._first_event_s.append((now - live.submitted_at) / self._config.slowdown)
                live.is_exact = live.is_exact and event.offset == live.num_tokens
                live.num_tokens += len(event.token_ids)
                self._tokens[live.tenant] += len(event.token_ids)
                if event.final:
                    self._finish(job_id, has_error=event.final.error is not None)

    def _finish(self, job_id: str, *, has_error: bool) -> None:
        live = self._live.pop(job_id)
        self._num_finished += 1
        self._num_errors += has_error
        self._num_wrong += not live.is_exact or live.num_tokens != live.max_tokens
        self._to_submit.put_nowait((live.tenant, self._config.max_tokens))

    async def _reap(self, shard: JobProducer) -> None:
        while True:
            await asyncio.sleep(_BEAT_S * self._config.slowdown)
            await shard.reap()

    async def _poll_workers(self) -> None:
        """Read the state of all workers, as the server does."""
        while True:
            await asyncio.sleep(_BEAT_S * self._config.slowdown)
            await self._producer.stats(await self._producer.heartbeats())

    def _result(self) -> LoadResult:
        shares = np.array([self._tokens[f"tenant-{n}"] for n in range(self._config.num_tenants)], float)
        return LoadResult(
            num_tokens=int(shares.sum()),
            num_jobs=self._num_finished,
            num_errors=self._num_errors,
            num_wrong=self._num_wrong,
            num_lost=None,
            seconds=time.monotonic() - self._began,
            submit_ms=_percentiles_ms(self._submit_s),
            first_event_ms=_percentiles_ms(self._first_event_s),
            fairness=float(shares.sum() ** 2 / (len(shares) * (shares**2).sum() or 1)),
        )


def _raise_error(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raise the error of a task that has failed."""
    for task in tasks:
        if task.done():
            task.result()


def _percentiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    if not seconds:
        return 0.0, 0.0
    median, high = np.percentile(seconds, (50, 99)) * 1000
    return round(float(median), 2), round(float(high), 2)


async def _main(config: LoadConfig) -> None:
    producer = await ShardedProducer.connect(
        queue_shards(config.urls, config.num_shards),
        max_queued=_NO_LIMIT,
        max_queued_cost=_NO_LIMIT,
        max_tenant_jobs=_NO_LIMIT,
        max_tenant_cost=_NO_LIMIT,
        lease_s=LEASE_S * config.slowdown,
        check_interval_s=_CHECK_S * config.slowdown,
        timeout_s=30.0,
    )
    result = await Load(producer, config).run()
    print(msgspec.json.encode(result).decode(), flush=True)
    await producer.aclose()


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=LoadConfig)))
