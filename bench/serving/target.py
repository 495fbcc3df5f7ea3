"""Prepare, start and stop the servers to benchmark."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.program import free_port
from bench.record import ROOT, WORK
from bench.serving.conversion import Conversion

__all__ = ["Memory", "RunningTarget", "Target", "Unavailable", "run_target"]

_READY_S = 900.0  # some servers spend minutes compiling at startup
_STOP_S = 30.0
_POLL_S = 0.02


class Unavailable(Exception):
    """The target cannot be benchmarked on this machine. The message states the reason."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server to benchmark.

    ``command`` takes the port and returns the command line. ``prepare`` installs the server if necessary, and
    raises Unavailable if this fails. ``conversion`` converts the checkpoint if the server has its own format.
    ``bits`` is the width of the decoder weights, which determines the hardware limits. ``ready_path`` returns
    200 when the server is ready. ``model`` is the model name in requests. ``weights`` is the file or folder
    that the server loads, and ``cache`` the folder in which it stores data for its next start. ``stored`` is
    a pattern for a file in ``cache`` that the server may store after it is ready.
    """

    name: str
    title: str
    bits: float
    command: Callable[[int], Sequence[str]]
    model: str | None = None
    weights: Path | None = None
    cache: Path | None = None
    stored: str | None = None
    ready_path: str = "/health"
    prepare: Callable[[], None] = lambda: None
    conversion: Conversion | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    packages: Callable[[], Mapping[str, str]] = dict  # returns the versions of the server's packages


@dataclass(frozen=True)
class Memory:
    """The memory of all processes of a server, in bytes.

    ``rss_bytes`` counts shared pages once per process. ``pss_bytes`` counts them once.
    """

    rss_bytes: int
    pss_bytes: int


@dataclass(frozen=True)
class RunningTarget:
    """A running server. ``ready_s`` is its startup time in seconds."""

    url: str
    ready_s: float
    process: psutil.Process

    def memory(self) -> Memory:
        """Return the current memory use. Raises Unavailable if the server has exited."""
        rss = pss = 0
        try:
            processes = (self.process, *self.process.children(recursive=True))
        except psutil.NoSuchProcess as error:
            raise Unavailable("The server exited during the benchmark.") from error
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                info = process.memory_full_info()
                rss, pss = rss + info.rss, pss + info.pss
        return Memory(rss, pss)


@contextmanager
def run_target(target: Target, *, logs: Path = WORK / "logs") -> Iterator[RunningTarget]:
    """Start a target, yield it when it is ready, and stop it afterwards.

    Its output is written to a file in the folder ``logs``. Raises Unavailable if the target exits or is not
    ready within 15 minutes.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = logs / f"{target.name}.log"
    began = time.perf_counter()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            list(target.command(port)),
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **target.environment},
            start_new_session=True,
        )
    try:
        _wait_until_ready(target, process, url + target.ready_path, log)
        yield RunningTarget(url, time.perf_counter() - began, psutil.Process(process.pid))
    finally:
        _stop(process)


def _wait_until_ready(target: Target, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(
                f"The server exited with status {process.returncode} before it was ready. "
                f"The last line of its log: {_last_line(log)}"
            )
        if _is_ready(url):
            return
        time.sleep(_POLL_S)
    raise Unavailable(f"{target.title} was not ready after {_READY_S:.0f} seconds.")


def _last_line(log: Path) -> str:
    """Return the last line of a log, without local paths."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].replace(f"{ROOT}/", "") if lines else "(empty)"


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # not listening yet, or an error status
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the whole process group, because some servers do not stop their child processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
