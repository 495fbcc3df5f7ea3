"""The CPU time of Redis for single calls, from which docs/deploy/scaling.md extrapolates to larger fleets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from llava_wire.controller_side.producer import JobProducer
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event
from llava_wire.worker_side.consumer import JobConsumer

from bench.fleet.load import fleet_job
from bench.fleet.servers import Servers, running_servers
from bench.fleet.workers import scripted_heartbeat

__all__ = ["call_row", "measure_calls"]

_NUM_JOBS = 16
_MAX_TOKENS = 10**6
_NUM_CALLS = 2000
_LIMITS = dict.fromkeys(("max_queued", "max_queued_cost", "max_tenant_jobs", "max_tenant_cost"), 10**9)
_LEASE_S = 3600.0


def measure_calls(num_workers: int) -> dict[str, Any]:
    """Measure calls in a fleet of ``num_workers`` registered workers, one of which has 16 jobs.

    The times are in microseconds of Redis per call. ``read_workers`` are the calls with which a server reads
    the state of all workers every second.
    """
    with running_servers(1) as servers:
        return asyncio.run(_measure(servers, num_workers))


def call_row(calls: dict[str, Any]) -> str:
    others = ", ".join(f"{name} {value:.0f}" for name, value in calls.items() if name != "num_workers")
    return f"{calls['num_workers']:5} workers, µs of Redis per call: {others}"


async def _measure(servers: Servers, num_workers: int) -> dict[str, Any]:
    (url,) = servers.urls
    producer = await JobProducer.connect(url, timeout_s=30.0, lease_s=_LEASE_S, **_LIMITS)
    worker, *others = [
        await JobConsumer.connect(
            url, scripted_heartbeat(number, _NUM_JOBS), lease_s=_LEASE_S, hang_timeout_s=_LEASE_S
        )
        for number in range(num_workers)
    ]
    for each in others:
        await each.aclose()
    for _ in range(_NUM_JOBS):
        await producer.submit(fleet_job("tenant", _MAX_TOKENS), {})
    emitter = Emitter(worker, await worker.pull(_NUM_JOBS))

    async def time_of(call: Callable[[], Awaitable[Any]], number: int = _NUM_CALLS) -> float:
        before = servers.usage()
        for _ in range(number):
            await call()
        return round(servers.usage().since(before).cpu_s / number * 1e6, 1)

    times = {
        "emit_16_frames": await time_of(lambda: emitter.emit(_NUM_JOBS, 1)),
        "emit_16_frames_of_8_tokens": await time_of(lambda: emitter.emit(_NUM_JOBS, 8)),
        "emit_1_frame": await time_of(lambda: emitter.emit(1, 1)),
        "heartbeat": await time_of(worker.send_heartbeat),
        "reap": await time_of(producer.reap, 200),
        "read_workers": await time_of(lambda: _read_workers(producer), 200),
    }
    await worker.aclose()
    await producer.aclose()
    return {"num_workers": num_workers, **times}


async def _read_workers(producer: JobProducer) -> None:
    await producer.stats(await producer.heartbeats())


class Emitter:
    """Emits the events of a worker's jobs."""

    def __init__(self, worker: JobConsumer, assignments: list[Assignment]) -> None:
        self._worker = worker
        self._num_tokens = dict.fromkeys(range(len(assignments)), 0)
        self._assignments = assignments

    async def emit(self, num_jobs: int, num_tokens: int) -> None:
        """Emit one event with ``num_tokens`` tokens for each of the first ``num_jobs`` jobs."""
        events = []
        for number, assignment in enumerate(self._assignments[:num_jobs]):
            first = self._num_tokens[number]
            ids = tuple(range(first, first + num_tokens))
            events.append((assignment, Event(first, ids, " token" * num_tokens)))
            self._num_tokens[number] += num_tokens
        await self._worker.emit(events)
