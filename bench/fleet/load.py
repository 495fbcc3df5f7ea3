"""A controller with a constant number of unfinished jobs, and what it measures.

    python -m bench.fleet.load '{"urls": [...], "num_shards": 1, "num_jobs": 320, ...}'

Once the workers are busy, it prints "measuring", and at the end a `LoadResult` as JSON.
"""

from __future__ import annotations

import asyncio
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

from bench.fleet.workers import MODEL

__all__ = ["LoadConfig", "LoadResult", "fleet_job"]

_NO_LIMIT = 10**9
_REAP_S = 1.0
_SUBMITTERS = 8
_BUSY = 0.95


class LoadConfig(msgspec.Struct, frozen=True):
    """The load of one controller: ``num_jobs`` unfinished jobs of ``num_tenants`` tenants.

    The measurement begins once ``_BUSY`` of all ``num_slots`` slots of the workers are in use.
    """

    urls: list[str]
    num_shards: int
    num_jobs: int
    num_tenants: int
    max_tokens: int
    num_slots: int
    seconds: float
    lease_s: float


class LoadResult(msgspec.Struct, frozen=True):
    """``fairness`` is Jain's index of the tokens that the tenants received (1: all received the same)."""

    num_tokens: int
    num_jobs: int
    num_errors: int
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


class Load:
    """The controller. Every finished job is replaced by a new one of the same tenant."""

    def __init__(self, producer: ShardedProducer, config: LoadConfig) -> None:
        self._producer = producer
        self._config = config
        self._to_submit: asyncio.Queue[str] = asyncio.Queue()
        self._submitted: dict[str, tuple[str, float]] = {}  # job ID -> tenant, time of submission
        self._waiting: set[str] = set()  # jobs without an event
        self._reset()

    def _reset(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._submit_s: list[float] = []
        self._first_event_s: list[float] = []
        self._num_finished = self._num_errors = 0
        self._began = time.monotonic()

    async def run(self) -> LoadResult:
        config = self._config
        for number in range(config.num_jobs):
            self._to_submit.put_nowait(f"tenant-{number % config.num_tenants}")
        tasks = [asyncio.create_task(self._submit()) for _ in range(_SUBMITTERS)]
        for shard in self._producer.shards:
            tasks += [asyncio.create_task(self._follow(shard)), asyncio.create_task(self._reap(shard))]
        while sum((await self._producer.stats()).num_running.values()) < _BUSY * config.num_slots:
            await asyncio.sleep(_REAP_S)
            if crashed := [task for task in tasks if task.done()]:
                crashed[0].result()
        self._reset()
        print("measuring", flush=True)
        await asyncio.wait(tasks, timeout=config.seconds, return_when=asyncio.FIRST_EXCEPTION)
        result = self._result()
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return result

    async def _submit(self) -> None:
        while True:
            tenant = await self._to_submit.get()
            job = fleet_job(tenant, self._config.max_tokens)
            began = time.monotonic()
            self._submitted[job.job_id] = tenant, began
            self._waiting.add(job.job_id)
            await self._producer.shard(job.job_id).submit(job, {})
            self._submit_s.append(time.monotonic() - began)

    async def _follow(self, shard: JobProducer) -> None:
        async for batch in shard.follow():
            now = time.monotonic()
            for job_id, event in batch:
                tenant, submitted_at = self._submitted[job_id]
                if job_id in self._waiting:
                    self._waiting.remove(job_id)
                    self._first_event_s.append(now - submitted_at)
                self._tokens[tenant] += len(event.token_ids)
                if event.final:
                    del self._submitted[job_id]
                    self._num_finished += 1
                    self._num_errors += event.final.error is not None
                    self._to_submit.put_nowait(tenant)

    async def _reap(self, shard: JobProducer) -> None:
        while True:
            await asyncio.sleep(_REAP_S)
            await shard.reap()

    def _result(self) -> LoadResult:
        shares = np.array([self._tokens[f"tenant-{n}"] for n in range(self._config.num_tenants)], float)
        return LoadResult(
            num_tokens=int(shares.sum()),
            num_jobs=self._num_finished,
            num_errors=self._num_errors,
            seconds=time.monotonic() - self._began,
            submit_ms=_percentiles_ms(self._submit_s),
            first_event_ms=_percentiles_ms(self._first_event_s),
            fairness=float(shares.sum() ** 2 / (len(shares) * (shares**2).sum() or 1)),
        )


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
        lease_s=config.lease_s,
        timeout_s=30.0,
    )
    result = await Load(producer, config).run()
    print(msgspec.json.encode(result).decode(), flush=True)
    await producer.aclose()


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=LoadConfig)))
