"""``python -m bench.serving.overhead``: measure the latency and CPU time of the queue, controller and SSE.

An engine without a model generates a token for each stream every 40 ms. The latency of a token is the time
from the end of its step in the worker to the arrival of its last byte at the client, both measured with the
same clock. The CPU time of each process is measured while all streams run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from llava_cli.up.redis_process import private_redis

from bench.program import free_port, wait_until_served
from bench.record import write_record

_EVENT_ID = re.compile(rb"id: chatcmpl-[0-9a-f]+:(\d+)\r?\n")
_RAMP_UP_S = 2.0  # time between the start of the streams and the start of the measurement


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving.overhead", description=__doc__)
    parser.add_argument("--streams", type=int, default=64, help="number of concurrent streams (default 64)")
    parser.add_argument("--rate", type=float, default=25.0, help="tokens per second per stream (default 25)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="duration of the measurement in seconds (default 20)"
    )
    parser.add_argument("--name", default="overhead", help="name of the record in bench/results")
    parser.add_argument("--profile", type=Path, help="write a py-spy profile of the controller to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, private_redis() as (redis, url):
        log = Path(folder) / "steps.log"
        port = free_port()
        worker = ["bench.serving.clocked_worker", url, str(log), str(1 / args.rate), str(args.streams)]
        flags = ["--port", str(port), "--log-level", "warning", "--no-auth"]
        server = ["llava_server", "--redis-url", url, *flags]
        with (
            _process(list(redis.command)) as queue,
            _process([sys.executable, "-m", *server]) as controller,
            _process([sys.executable, "-m", *worker]) as engine,
        ):
            wait_until_served("echo", port)
            processes = {"controller": controller, "redis": queue, "worker": engine}
            if args.profile:
                _profile(controller, args.profile, args.seconds)
            arrivals, cores = asyncio.run(_measure(port, args.streams, args.rate, args.seconds, processes))
        results = {
            "added_latency_ms": _latencies(log, arrivals),
            "cpu_cores": {name: round(share, 4) for name, share in cores.items()},
            "controller_and_redis_cores": round(cores["controller"] + cores["redis"], 4),
        }
    settings = {"streams": args.streams, "tokens_per_s_each": args.rate, "seconds": args.seconds}
    print(json.dumps(results, indent=2))
    print(write_record(args.name, results, settings=settings))


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[psutil.Process]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAVA_")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _profile(process: psutil.Process, path: Path, seconds: float) -> None:
    options = ["--pid", str(process.pid), "--duration", str(int(seconds)), "--output", str(path)]
    subprocess.Popen(["py-spy", "record", "--format", "raw", *options], stdout=subprocess.DEVNULL)


async def _measure(
    port: int, num_streams: int, rate: float, seconds: float, processes: dict[str, psutil.Process]
) -> tuple[list[tuple[str, float]], dict[str, float]]:
    """Return (request:position, arrival time) for each token, and the CPU cores used by each process."""
    num_tokens = int(rate * (seconds + 2 * _RAMP_UP_S)) + 1
    arrivals: list[tuple[str, float]] = []
    streams = [
        asyncio.create_task(_stream(port, number, num_tokens, arrivals)) for number in range(num_streams)
    ]
    await asyncio.sleep(_RAMP_UP_S)
    before, began = {name: _cpu_s(process) for name, process in processes.items()}, time.monotonic()
    await asyncio.sleep(seconds)
    elapsed_s, ended = time.monotonic() - began, time.monotonic()
    cores = {name: (_cpu_s(process) - before[name]) / elapsed_s for name, process in processes.items()}
    await asyncio.gather(*streams)
    return [arrival for arrival in arrivals if began <= arrival[1] <= ended], cores


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _stream(port: int, number: int, num_tokens: int, arrivals: list[tuple[str, float]]) -> None:
    """Read one stream with minimal work, so that the client does not add latency."""
    body: dict[str, Any] = {
        "model": "echo",
        "messages": [{"role": "user", "content": f"request {number}"}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(payload)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\nconnection: close\r\n\r\n" + payload)
    while data := await reader.read(65536):
        now = time.monotonic()
        arrivals += [(f"{number}:{int(position)}", now) for position in _EVENT_ID.findall(data)]
    writer.close()


def _latencies(log: Path, arrivals: list[tuple[str, float]]) -> dict[str, float]:
    generated_at: dict[str, float] = {}
    for line in log.read_text().splitlines():
        moment, *tokens = line.split()
        generated_at |= dict.fromkeys(tokens, float(moment))
    latencies_ms = sorted(
        1000 * (arrived - generated_at[token]) for token, arrived in arrivals if token in generated_at
    )
    if not latencies_ms:
        raise SystemExit("No token was received in the expected format. Check the IDs of the SSE events.")
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    figures = {
        name: round(latencies_ms[int(share * (len(latencies_ms) - 1))], 2) for name, share in shares.items()
    }
    return {**figures, "max": round(latencies_ms[-1], 2), "num_tokens": len(latencies_ms)}


if __name__ == "__main__":
    main()
