"""``python -m bench.fleet``: simulate fleets of up to thousands of workers on real Redis servers.

The queue and the connections of the controller and the workers to it are real. Only the engines are
simulated: each worker generates one token for each of its 16 jobs per step. Two kinds of measurements are
made:

- **Workers.** All slots of all workers are in use. To fit thousands of workers on one machine, they run in
  slow motion: the total number of steps per second is the same for all fleets, and the intervals of
  heartbeats are extended by the same factor. The cost of a token is therefore comparable between fleets.
- **Waiting jobs.** Without workers, the cost of submitting and pulling a job is measured while many jobs
  wait.

The CPU time of Redis does not depend on other programs that use the machine, but the latencies do.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.messages.heartbeat import Heartbeat, ImageSpec
from llava_wire.redis.shards import queue_shards
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

from bench.fleet.load import LoadConfig, LoadResult, fleet_job
from bench.fleet.servers import Servers, Usage, running_servers
from bench.fleet.workers import MODEL, WorkersConfig
from bench.record import RESULTS, write_record

NUM_SLOTS = 16
REAL_STEP_S = 0.03  # duration of a step of a real worker, relative to which the simulation is slowed down
REAL_BEAT_S = 1.0
BACKLOG = 1.25  # unfinished jobs per slot
MAX_TOKENS = 64
NUM_TENANTS = 20
NUM_TRIALS = 500  # submitted or pulled jobs per measurement
WORKERS_PER_PROCESS = 1000
FLEETS = ((10, 1), (50, 1), (100, 1), (500, 1), (1000, 1), (2000, 1), (500, 4), (2000, 4), (2000, 8))
WAITING = (100, 1000, 10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument(
        "--fleets",
        type=_fleets,
        default=FLEETS,
        metavar="WORKERS:SHARDS,...",
        help="numbers of workers and shards (default: 10 to 2,000 workers on 1 to 8 shards)",
    )
    parser.add_argument(
        "--waiting", type=_numbers, default=WAITING, metavar="JOBS,...", help="numbers of waiting jobs"
    )
    parser.add_argument("--steps-per-s", type=float, default=300.0, help="of all workers (default 300)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per measurement (default 20)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the plot")
    args = parser.parse_args()
    fleets = []
    for num_workers, num_shards in args.fleets:
        fleets.append(measure_fleet(num_workers, num_shards, args.steps_per_s, args.seconds))
        print(_fleet_row(fleets[-1]), flush=True)
    queues = []
    for num_waiting in args.waiting:
        queues.append(measure_waiting(num_waiting))
        print(_queue_row(queues[-1]), flush=True)
    settings = {"slots": NUM_SLOTS, "steps_per_s": args.steps_per_s, "seconds": args.seconds}
    print(write_record("fleet", {"fleets": fleets, "waiting": queues}, settings=settings, folder=args.out))
    print(plot(fleets, queues, args.out / "fleet.png"))


def measure_fleet(num_workers: int, num_shards: int, steps_per_s: float, seconds: float) -> dict[str, Any]:
    """Measure a fleet whose slots are all in use. Each shard has its own server."""
    step_s = num_workers / steps_per_s
    slowdown = max(step_s / REAL_STEP_S, 1.0)
    beat_s = REAL_BEAT_S * slowdown
    with ExitStack() as stack:
        servers = stack.enter_context(running_servers(num_shards))
        for first in range(0, num_workers, WORKERS_PER_PROCESS):
            number = min(WORKERS_PER_PROCESS, num_workers - first)
            workers = WorkersConfig(servers.urls, num_shards, first, number, NUM_SLOTS, step_s, beat_s)
            _start(stack, "bench.fleet.workers", workers)
        load = LoadConfig(
            servers.urls,
            num_shards,
            num_jobs=int(num_workers * NUM_SLOTS * BACKLOG),
            num_tenants=NUM_TENANTS,
            max_tokens=MAX_TOKENS,
            num_slots=num_workers * NUM_SLOTS,
            seconds=max(seconds, 4 * step_s),
            lease_s=4 * beat_s,
        )
        controller = _start(stack, "bench.fleet.load", load, stdout=subprocess.PIPE)
        assert controller.stdout is not None
        if controller.stdout.readline().strip() != b"measuring":
            raise RuntimeError("The controller of the simulation failed. Its error is printed above.")
        before = servers.usage()
        result = msgspec.json.decode(controller.stdout.readline(), type=LoadResult)
        usage = servers.usage().since(before)
    return {
        "num_workers": num_workers,
        "num_shards": num_shards,
        "slowdown": round(slowdown, 1),
        "tokens_per_s": round(result.num_tokens / result.seconds),
        "redis_us_per_token": round(usage.cpu_s / result.num_tokens * 1e6, 2),
        "commands_per_token": round(usage.num_commands / result.num_tokens, 4),
        "peak_mib": round(usage.peak_bytes / 2**20),
        **msgspec.structs.asdict(result),
    }


def measure_waiting(num_waiting: int) -> dict[str, Any]:
    """Measure the CPU time of Redis per submitted job, and per pulled job, while jobs wait."""
    with running_servers(1) as servers:
        return asyncio.run(_measure_waiting(servers, num_waiting))


async def _measure_waiting(servers: Servers, num_waiting: int) -> dict[str, Any]:
    shards = queue_shards(servers.urls, 1)
    limits = dict.fromkeys(("max_queued", "max_queued_cost", "max_tenant_jobs", "max_tenant_cost"), 10**9)
    producer = await ShardedProducer.connect(shards, timeout_s=30.0, **limits)
    heartbeat = Heartbeat(
        worker_id="w",
        model=MODEL,
        image_spec=ImageSpec(side=2),
        context_length=4096,
        capacity=NUM_SLOTS,
        device="cpu",
        precision="none",
    )
    consumer = await ShardedConsumer.connect(shards, heartbeat, lease_s=600.0)
    await _submit(producer, num_waiting)
    before, began = servers.usage(), time.perf_counter()
    await _submit(producer, NUM_TRIALS)
    submit_s, submitted = time.perf_counter() - began, servers.usage().since(before)
    before, num_pulled = servers.usage(), 0
    while num_pulled < NUM_TRIALS:
        assignments = await consumer.pull(NUM_SLOTS)
        num_pulled += len(assignments)
        await consumer.requeue(assignments)
    pulled = servers.usage().since(before)
    await consumer.aclose()
    await producer.aclose()
    return {
        "num_waiting": num_waiting,
        "submit_cpu_ms": _ms_each(submitted, NUM_TRIALS),
        "submit_ms": round(submit_s / NUM_TRIALS * 1000, 3),
        "pull_and_requeue_cpu_ms": _ms_each(pulled, num_pulled),
        "peak_mib": round(pulled.peak_bytes / 2**20),
    }


async def _submit(producer: ShardedProducer, number: int) -> None:
    for index in range(number):
        job = fleet_job(f"tenant-{index % NUM_TENANTS}", MAX_TOKENS)
        await producer.shard(job.job_id).submit(job, {})


def _ms_each(usage: Usage, number: int) -> float:
    return round(usage.cpu_s / number * 1000, 4)


def plot(fleets: Sequence[dict[str, Any]], queues: Sequence[dict[str, Any]], path: Path) -> Path:
    """Plot the costs of a token and of a submitted job, save the plot to ``path`` and return ``path``."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8))
    for num_shards in sorted({fleet["num_shards"] for fleet in fleets}):
        points = [fleet for fleet in fleets if fleet["num_shards"] == num_shards]
        label = f"{num_shards} shard" + "s" * (num_shards > 1)
        left.plot(
            [point["num_workers"] for point in points],
            [point["redis_us_per_token"] for point in points],
            marker="o",
            label=label,
        )
    left.set(xscale="log", xlabel="workers", ylabel="CPU time of Redis per token (µs)", ylim=(0, None))
    left.legend()
    for name, label in (("submit_cpu_ms", "submit"), ("pull_and_requeue_cpu_ms", "pull and requeue")):
        right.plot([q["num_waiting"] for q in queues], [q[name] for q in queues], marker="o", label=label)
    right.set(xscale="log", xlabel="waiting jobs", ylabel="CPU time of Redis per job (ms)", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _start(
    stack: ExitStack, module: str, config: msgspec.Struct, *, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, msgspec.json.encode(config).decode()]
    process = subprocess.Popen(command, stdout=stdout)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _fleet_row(fleet: dict[str, Any]) -> str:
    return (
        "{num_workers:5} workers, {num_shards} shards: {tokens_per_s:6} tokens/s, "
        "{redis_us_per_token:6.2f} µs of Redis and {commands_per_token:.3f} commands per token, "
        "submit {submit_ms[0]:.1f} ms, fairness {fairness:.3f}, {num_errors} errors, {peak_mib} MiB"
    ).format(**fleet)


def _queue_row(queue: dict[str, Any]) -> str:
    return (
        "{num_waiting:6} waiting jobs: submit {submit_cpu_ms:.3f} ms of Redis CPU, "
        "pull and requeue {pull_and_requeue_cpu_ms:.3f} ms, {peak_mib} MiB"
    ).format(**queue)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _fleets(text: str) -> tuple[tuple[int, int], ...]:
    pairs = (part.split(":") for part in text.split(",") if part)
    return tuple((int(num_workers), int(num_shards)) for num_workers, num_shards in pairs)


if __name__ == "__main__":
    main()
