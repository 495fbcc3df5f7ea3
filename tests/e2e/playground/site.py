"""The processes behind a page: a controller and a worker."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.machine_speed import scaled
from tests.waiting import wait_until

# Slow enough to press stop in mid-sentence, fast enough for whole answers: echo writes 64-127 tokens.
ECHO = ("--model", "echo", "--echo-step-s", "0.03", "--echo-faults")


@dataclass(frozen=True)
class Site:
    """A running controller."""

    url: str
    redis_url: str

    def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        text = httpx2.get(f"{self.url}/metrics").text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@contextmanager
def controller(redis_url: str, folder: Path, **variables: str) -> Iterator[Site]:
    """A controller that has seen its worker."""
    port = _free_port()
    with _program("llava_server", ["--port", str(port), "--redis-url", redis_url], folder, variables):
        site = Site(f"http://127.0.0.1:{port}", redis_url)
        wait_until(lambda: _is_ready(site.url), f"the server, see {folder}")
        yield site


@contextmanager
def worker(redis_url: str, folder: Path, *arguments: str) -> Iterator[None]:
    """A worker that may still be loading its model; the controller is ready when it has seen it."""
    with _program("llava_worker", [*arguments, "--redis-url", redis_url], folder, {}):
        yield


@contextmanager
def _program(
    module: str, arguments: Sequence[str], folder: Path, variables: dict[str, str]
) -> Iterator[None]:
    """A process that ends with the block."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_")}
    settings = {"LLAVA_DRAIN_TIMEOUT_S": "0", "LLAVA_AUTH": "false", **variables}
    with (folder / f"{module}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=log, stderr=log, env=inherited | settings
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(scaled(10))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False
