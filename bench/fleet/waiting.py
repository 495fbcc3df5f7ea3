"""The cost of submitting and pulling a job while many jobs wait. There are no other workers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.redis.shards import queue_shards
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

from bench.fleet.fleets import NUM_TENANTS
from bench.fleet.load import fleet_job
from bench.fleet.servers import Servers, Usage, running_servers
from bench.fleet.workers import scripted_heartbeat

__all__ = ["measure_waiting", "waiting_row"]

_MAX_TOKENS = 64
_NUM_TRIALS = 500  # submitted or pulled jobs per measurement
_NUM_SLOTS = 16
_LIMITS = dict.fromkeys(("max_queued", "max_queued_cost", "max_tenant_jobs", "max_tenant_cost"), 10**9)


def measure_waiting(num_waiting: int) -> dict[str, Any]:
    """Measure the CPU time of Redis per submitted and per pulled job while ``num_waiting`` jobs wait."""
    with running_servers(1) as servers:
        return asyncio.run(_measure(servers, num_waiting))


def waiting_row(queue: dict[str, Any]) -> str:
    return (
        "{num_waiting:6} waiting jobs: submit {submit_cpu_ms:.3f} ms of Redis CPU, "
        "pull and requeue {pull_and_requeue_cpu_ms:.3f} ms, {peak_mib} MiB"
    ).format(**queue)


async def _measure(servers: Servers, num_waiting: int) -> dict[str, Any]:
    shards = queue_shards(servers.urls, 1)
    producer = await ShardedProducer.connect(shards, timeout_s=30.0, **_LIMITS)
    consumer = await ShardedConsumer.connect(shards, scripted_heartbeat(0, _NUM_SLOTS), lease_s=600.0)
    await _submit(producer, num_waiting)
    before, began = servers.usage(), time.perf_counter()
    await _submit(producer, _NUM_TRIALS)
    submit_s, submitted = time.perf_counter() - began, servers.usage().since(before)
    before, num_pulled = servers.usage(), 0
    while num_pulled < _NUM_TRIALS:
        assignments = await consumer.pull(_NUM_SLOTS)
        num_pulled += len(assignments)
        await consumer.requeue(assignments)
    pulled = servers.usage().since(before)
    await consumer.aclose()
    await producer.aclose()
    return {
        "num_waiting": num_waiting,
        "submit_cpu_ms": _ms_each(submitted, _NUM_TRIALS),
        "submit_ms": round(submit_s / _NUM_TRIALS * 1000, 3),
        "pull_and_requeue_cpu_ms": _ms_each(pulled, num_pulled),
        "peak_mib": round(pulled.peak_bytes / 2**20),
    }


async def _submit(producer: ShardedProducer, number: int) -> None:
    for index in range(number):
        job = fleet_job(f"tenant-{index % NUM_TENANTS}", _MAX_TOKENS)
        await producer.shard(job.job_id).submit(job, {})


def _ms_each(usage: Usage, number: int) -> float:
    return round(usage.cpu_s / number * 1000, 4)
