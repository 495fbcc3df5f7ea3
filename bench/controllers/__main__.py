"""Measure the CPU time per token of controllers, and the latency that they and the queue add.

    python -m bench.controllers                                     (one controller, 64 streams)
    python -m bench.controllers --streams 800 --processes 2
    python -m bench.controllers --compare ../other-checkout         (alternating runs of two versions)

Workers without an engine generate tokens at a fixed rate. The latency of a token is the time from the end of
its step in the worker to its arrival at a client. Redis, the workers and the clients run in their own
processes, whose CPU time is reported as well. On an overloaded machine, tokens wait and are sent together,
which reduces ``reads_per_token`` and the CPU time per token.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from llava_cli.up.redis_process import private_redis

from bench.controllers.clients import ClientsConfig, ClientsResult
from bench.controllers.worker import WorkersConfig
from bench.fleet.workers import MODEL
from bench.program import free_port, wait_until_served
from bench.record import ROOT, commit_of, write_record

_STREAMS_PER_WORKER = 100
_RAMP_UP_S = 60.0  # of tokens that streams can generate before and after the measurement
_PACKAGES = ("wire", "server", "worker", "client")
_NO_LIMITS = {
    "max-tenant-jobs": 100_000,
    "max-tenant-requests": 100_000,
    "max-open-requests": 100_000,
    "max-connections": 100_000,
    "max-address-connections": 100_000,
    "max-tenant-tokens": 10**12,
    "max-queued-tokens": 10**12,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.controllers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", type=int, default=64, help="number of concurrent streams (default 64)")
    parser.add_argument("--rate", type=float, default=25.0, help="tokens per second per stream (default 25)")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of a measurement (default 10)")
    parser.add_argument("--processes", type=int, default=1, help="number of controllers (default 1)")
    parser.add_argument("--runs", type=int, default=1, help="number of runs of each version (default 1)")
    parser.add_argument("--compare", type=Path, help="checkout of another version, measured in alternation")
    parser.add_argument("--profile", type=Path, help="write a py-spy profile of a controller to this file")
    parser.add_argument("--name", help="name of the record in bench/results (default: do not write one)")
    args = parser.parse_args()
    versions = {"this": ROOT} | ({"other": args.compare.resolve()} if args.compare else {})
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
    for _ in range(args.runs):
        for name, root in versions.items():
            runs[name].append(measure(root, args))
            print(name, msgspec.json.encode(runs[name][-1]).decode(), flush=True)
    results = {name: _medians(each) for name, each in runs.items()}
    print(msgspec.json.format(msgspec.json.encode(results)).decode())
    if args.name:
        settings = {name: getattr(args, name) for name in ("streams", "rate", "seconds", "processes", "runs")}
        settings |= {"compared_commit": commit_of(args.compare)} if args.compare else {}
        print(write_record(args.name, {"median": results, "runs": runs}, settings=settings))


def measure(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the controllers of the checkout ``root`` once."""
    with contextlib.ExitStack() as stack:
        redis, url = stack.enter_context(private_redis())
        port = free_port()
        limits = [word for name, value in _NO_LIMITS.items() for word in (f"--{name}", str(value))]
        processes = ["--processes", str(args.processes)] if args.processes > 1 else []
        flags = ["--redis-url", url, "--port", str(port), "--log-level", "warning", "--no-auth"]
        num_workers = max(1, args.streams // _STREAMS_PER_WORKER)
        num_slots = -(-args.streams // num_workers)
        workers = WorkersConfig(url, num_workers, num_slots, args.rate)
        started = {
            "redis": stack.enter_context(_process(list(redis.command))),
            "controllers": stack.enter_context(
                _process(_python("llava_server", *flags, *limits, *processes), root)
            ),
            "workers": stack.enter_context(_process(_python("bench.controllers.worker", _json(workers)))),
        }
        wait_until_served(MODEL, port)
        max_tokens = int(args.rate * (args.seconds + _RAMP_UP_S))
        config = ClientsConfig(port, args.streams, max_tokens, args.seconds)
        clients = stack.enter_context(
            subprocess.Popen(
                _python("bench.controllers.clients", _json(config)), stdout=subprocess.PIPE, cwd=ROOT
            )
        )
        stack.callback(clients.kill)
        started["clients"] = psutil.Process(clients.pid)
        _expect(clients, b"measuring")
        if args.profile:
            _profile(started["controllers"], args.profile, args.seconds)
        before = {name: _cpu_s(process) for name, process in started.items()}
        _expect(clients, b"measured")
        used = {name: np.subtract(_cpu_s(process), before[name]) for name, process in started.items()}
        assert clients.stdout is not None
        result = msgspec.json.decode(clients.stdout.readline(), type=ClientsResult)
    return {
        "tokens_per_s": round(result.num_tokens / result.seconds),
        "stream_tokens": result.stream_tokens,
        "reads_per_token": round(result.num_reads / result.num_tokens, 3),
        "latency_ms": result.latency_ms,
        "cpu_us_per_token": {
            name: round(float(sum(times)) / result.num_tokens * 1e6, 1) for name, times in used.items()
        },
        "controllers_user_us_per_token": round(float(used["controllers"][0]) / result.num_tokens * 1e6, 1),
    }


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over several runs."""
    return {
        name: _medians([run[name] for run in runs])
        if isinstance(runs[0][name], Mapping)
        else round(statistics.median(run[name] for run in runs), 2)
        for name in runs[0]
        if name != "stream_tokens"
    }


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _json(config: msgspec.Struct) -> str:
    return msgspec.json.encode(config).decode()


@contextlib.contextmanager
def _process(command: list[str], root: Path = ROOT) -> Iterator[psutil.Process]:
    """Run a program with the packages of the checkout ``root``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAVA_")}
    environment["PYTHONPATH"] = os.pathsep.join(str(root / package) for package in _PACKAGES)
    process = subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill() if command[-1].startswith("{") else process.terminate()
        process.wait(timeout=30)


def _expect(clients: subprocess.Popen[bytes], line: bytes) -> None:
    assert clients.stdout is not None
    if clients.stdout.readline().strip() != line:
        raise SystemExit("The clients failed. Their error is printed above.")


def _cpu_s(process: psutil.Process) -> tuple[float, float]:
    """Return the CPU time of a process and its children: in its own code, and in the kernel."""
    all_times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(times.user for times in all_times), sum(times.system for times in all_times)


def _profile(controllers: psutil.Process, path: Path, seconds: float) -> None:
    pid = (_controllers_of(controllers) or [controllers])[0].pid
    options = ["--pid", str(pid), "--duration", str(int(seconds)), "--output", str(path), "--rate", "500"]
    subprocess.Popen(["py-spy", "record", "--format", "raw", *options], stdout=subprocess.DEVNULL)


def _controllers_of(parent: psutil.Process) -> list[psutil.Process]:
    return [
        each for each in parent.children() if "llava_server.controller_process" in " ".join(each.cmdline())
    ]


if __name__ == "__main__":
    main()
