"""``python -m bench.engine.startup``: measure the startup and the memory of CPU workers.

Each worker serves the generated 1.3B checkpoint. For each precision, the benchmark starts one worker without
the weights cache, one that stores the weights, one that maps them, and finally four workers at once that map
them. The startup time ends when the worker has registered with the queue. Other programs affect the CPU time
until then less than the elapsed time. The memory is measured when the workers are idle, after they have
allocated memory for later requests. ``rss`` counts shared pages once per worker; ``pss`` divides them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from llava_cli.up.redis_process import find_redis_binary

from bench.checkpoint import ensure_checkpoint
from bench.program import wait_until_stored
from bench.record import WORK, write_record

_CACHE = WORK / "weights-cache"
_NUM_SHARED = 4
_IDLE_S = 8.0  # time in which idle workers allocate memory for later requests
_TIMEOUT_S = 900.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.startup", description=__doc__)
    parser.add_argument("--precisions", nargs="+", default=["int8", "int4", "bf16"])
    parser.add_argument("--threads", type=int, default=1, help="threads per worker (default 1)")
    parser.add_argument(
        "--name",
        default="startup",
        help="name of the record; 'startup-before' is a version without the cache",
    )
    args = parser.parse_args()
    folder = ensure_checkpoint()
    results = {}
    with _redis() as url:
        for precision in args.precisions:
            command = [sys.executable, "-m", "llava_worker", "--model", str(folder), "--redis-url", url]
            command += ["--precision", precision, "--device", "cpu", "--threads", str(args.threads)]
            results[precision] = _measure(command, has_cache=args.name != "startup-before")
            print(precision, results[precision], flush=True)
    print(write_record(args.name, results, settings={"threads": args.threads}))


def _measure(command: list[str], *, has_cache: bool) -> dict[str, Any]:
    if not has_cache:
        return {"off": _start(command, 1)}
    shutil.rmtree(_CACHE, ignore_errors=True)
    cached = [*command, "--weights-cache", str(_CACHE)]
    return {
        "off": _start([*command, "--weights-cache", "off"], 1),
        "stored": _start(cached, 1, is_stored=True),
        "mapped": _start(cached, 1),
        f"mapped by {_NUM_SHARED}": _start(cached, _NUM_SHARED),
    }


def _start(command: list[str], num_workers: int, *, is_stored: bool = False) -> dict[str, Any]:
    """Start workers one after another, and return their times and, when all are idle, their memory.

    If ``is_stored`` is true, wait until the weights are stored.
    """
    times: list[tuple[float, float]] = []
    with ExitStack() as stack:
        workers = []
        for _ in range(num_workers):
            began = time.perf_counter()
            worker = stack.enter_context(_worker(command))
            used = worker.cpu_times()
            times.append((time.perf_counter() - began, used.user + used.system))
            workers.append(worker)
        if is_stored:
            wait_until_stored(_CACHE, "*.weights")
        time.sleep(_IDLE_S)
        memory = [worker.memory_full_info() for worker in workers]
    return {
        "ready_s": round(times[-1][0], 2),
        "cpu_s": round(times[-1][1], 2),
        "rss_mb": [each.rss // 10**6 for each in memory],
        "pss_mb": [each.pss // 10**6 for each in memory],
    }


@contextmanager
def _worker(command: list[str]) -> Iterator[psutil.Process]:
    """Start a worker, yield it when it is ready, and stop it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while "worker ready" not in log.read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The worker did not start: {log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _redis() -> Iterator[str]:
    """Start a Redis server and yield its URL."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "redis.sock"
        command = [find_redis_binary(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
        process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.02)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
