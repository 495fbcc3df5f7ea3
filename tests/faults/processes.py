"""The processes of a fault test: controllers at fixed ports and echo workers, killed, stopped and started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.machine_speed import scaled

__all__ = ["ControllerProcess", "WorkerProcess", "free_port"]

LEASE_S = 1.0
HANG_S = 3.0
ORPHAN_GRACE_S = 3.0


class _Process:
    """One program, which may be started again; everything it says is in ``log``."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._begin = 0  # of the present life, in the log

    @property
    def log(self) -> str:
        """What the present life said."""
        return self._log.read_bytes()[self._begin :].decode() if self._log.exists() else ""

    @property
    def status(self) -> int | None:
        """None while it runs; minus the signal's number if one ended it."""
        return self._process.poll() if self._process else 0

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_")}
        environment["LLAVA_AUTH"] = "false"  # who asks is not what is tested here
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(self._command, stdout=sink, stderr=sink, env=environment)

    def send(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def wait(self) -> int:
        assert self._process
        return self._process.wait(scaled(30))

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


class ControllerProcess(_Process):
    """A controller that keeps its port over its lives."""

    def __init__(self, redis_url: str, log: Path, **settings: object) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        settings = {
            "redis_url": redis_url,
            "port": port,
            "lease_s": LEASE_S,
            "image_workers": 1,
            "orphan_grace_s": ORPHAN_GRACE_S,
            **settings,
        }
        super().__init__("llava_server", _flags(settings), log)

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=scaled(5)).status_code == 200
        except httpx2.TransportError:
            return False


class WorkerProcess(_Process):
    """A worker of the echo model whose prompts may ask for faults."""

    def __init__(self, redis_url: str, log: Path, **settings: object) -> None:
        settings = {
            "model": "echo",
            "redis_url": redis_url,
            "lease_s": LEASE_S,
            "hang_timeout_s": HANG_S,
            "echo_step_s": 0.01,
            "echo_faults": True,
            **settings,
        }
        super().__init__("llava_worker", _flags(settings), log)

    @property
    def is_ready(self) -> bool:
        return self.status is None and "worker ready" in self.log


def _flags(settings: dict[str, object]) -> list[str]:
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
