"""The cost of a token in fleets of different sizes. Each shard has its own Redis server."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec
from llava_wire.worker_side.emit_pacer import MAX_INTERVAL_S

from bench.fleet.load import LoadConfig, LoadResult
from bench.fleet.servers import running_servers
from bench.fleet.workers import STEP_S, WorkersConfig
from bench.record import ROOT

__all__ = ["NUM_TENANTS", "FleetSettings", "fleet_row", "measure_fleet"]

NUM_TENANTS = 20
_BACKLOG = 0.25  # waiting jobs per running job, in addition to overflow jobs
_WORKERS_PER_PROCESS = 1000


@dataclass(frozen=True)
class FleetSettings:
    """``tokens_per_s`` is the maximum for the whole fleet, in real time.

    If ``num_jobs`` is not 0, there are only as many jobs, regardless of the number of workers.
    """

    num_slots: int = 16
    max_tokens: int = 64
    tokens_per_s: float = 5000.0
    seconds: float = 20.0
    num_jobs: int = 0
    drains: bool = False
    is_paced: bool = True


def measure_fleet(num_workers: int, num_shards: int, settings: FleetSettings) -> dict[str, Any]:
    """Measure a fleet. Raise RuntimeError if a process of the simulation fails."""
    num_slots = num_workers * settings.num_slots
    num_overflow = num_workers * max(1, settings.num_slots // 4)
    num_running = settings.num_jobs or num_slots
    num_jobs = settings.num_jobs or int((num_slots + num_overflow) * (1 + _BACKLOG))
    slowdown = max(num_running / STEP_S / settings.tokens_per_s, 1.0)
    with ExitStack() as stack:
        servers = stack.enter_context(running_servers(num_shards))
        for first in range(0, num_workers, _WORKERS_PER_PROCESS):
            number = min(_WORKERS_PER_PROCESS, num_workers - first)
            workers = WorkersConfig(
                servers.urls, num_shards, first, number, settings.num_slots, slowdown, settings.is_paced
            )
            _start(stack, "bench.fleet.workers", workers)
        load = LoadConfig(
            servers.urls,
            num_shards,
            num_jobs=num_jobs,
            num_running=num_running,
            num_tenants=NUM_TENANTS,
            max_tokens=settings.max_tokens,
            seconds=max(settings.seconds, 2 * MAX_INTERVAL_S * slowdown),
            slowdown=slowdown,
            drains=settings.drains,
        )
        controller = _start(stack, "bench.fleet.load", load, stdout=subprocess.PIPE)
        _expect(controller, "measuring")
        before = servers.usage()
        _expect(controller, "measured")
        usage = servers.usage().since(before)
        result = msgspec.json.decode(_line(controller), type=LoadResult)
    return {
        "num_workers": num_workers,
        "num_shards": num_shards,
        "is_paced": settings.is_paced,
        "slowdown": round(slowdown, 1),
        "tokens_per_s": round(result.num_tokens / result.seconds),
        "redis_us_per_token": round(usage.cpu_s / result.num_tokens * 1e6, 2),
        "calls_per_token": round(usage.num_calls / result.num_tokens, 4),
        "commands_per_token": round(usage.num_commands / result.num_tokens, 4),
        "peak_mib": round(usage.peak_bytes / 2**20),
        **msgspec.structs.asdict(result),
    }


def fleet_row(fleet: dict[str, Any]) -> str:
    return (
        "{num_workers:5} workers, {num_shards} shards: {tokens_per_s:6} tokens/s, "
        "{redis_us_per_token:6.2f} µs of Redis, {calls_per_token:.3f} calls and {commands_per_token:.2f} "
        "commands per token, submit {submit_ms[0]:.1f} ms, first event {first_event_ms[0]:.0f} ms, "
        "fairness {fairness:.3f}, {num_jobs} jobs, {num_errors} errors, {num_wrong} wrong, {num_lost} lost, "
        "{peak_mib} MiB"
    ).format(**fleet)


def _line(controller: subprocess.Popen[bytes]) -> bytes:
    assert controller.stdout is not None
    return controller.stdout.readline().strip()


def _expect(controller: subprocess.Popen[bytes], line: str) -> None:
    if _line(controller) != line.encode():
        raise RuntimeError("The controller of the simulation failed. Its error is printed above.")


def _start(
    stack: ExitStack, module: str, config: msgspec.Struct, *, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, msgspec.json.encode(config).decode()]
    process = stack.enter_context(subprocess.Popen(command, stdout=stdout, cwd=ROOT))
    stack.callback(process.kill)  # called before the process is waited for
    return process
