"""Controllers and workers that run as real processes. Tests start, signal, kill and restart them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

from tests.fork_server import Program, fork_server
from tests.machine_speed import scaled
from tests.waiting import async_wait_until, wait_until

# The modules that each program imports. A worker imports the engine's unless it serves the echo model.
_CONTROLLER_MODULES = ("llava_server.process_group", "llava_server.serve")
_ECHO_MODULES = ("llava_worker.worker_process", "llava_worker.echo_engine")
_TRANSFORMERS_MODULES = (
    "llava_worker.engine.transformers.build",
    "transformers.generation.utils",
    "transformers.models.auto.image_processing_auto",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
)
_ENGINE_MODULES = (
    "llava_worker.worker_process",
    "llava_worker.engine.startup.build_engine",
    "llava_worker.engine.structured_output.grammar_cache",
    "llava_worker.language.hf_tokenizer",
)


class Process:
    """A program configured through LLAVA_* variables. Its output is written to a log file.

    It is forked from a process that has imported ``imports``, or started by ``prefix`` if that is set.
    """

    prefix: tuple[str, ...] = ()  # a command that runs the program, such as prlimit

    def __init__(self, module: str, log: Path, imports: Sequence[str], **settings: object) -> None:
        self._module = module
        self._imports = imports
        self._settings = {f"LLAVA_{name.upper()}": str(value) for name, value in settings.items()}
        self._log = log
        self._log_start = 0  # offset of the current run's output
        self._process: subprocess.Popen[bytes] | Program | None = None

    @property
    def log(self) -> str:
        """The output of the current run."""
        return self._log.read_bytes()[self._log_start :].decode() if self._log.exists() else ""

    @property
    def status(self) -> int | None:
        """The exit status. None while the program is running, negative if it was terminated by a signal."""
        return self._process.poll() if self._process else 0

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def children(self) -> list[int]:
        """The process IDs of the program's children."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def start(self) -> None:
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("LLAVA_", "PYTEST_"))
        }
        with self._log.open("ab") as sink:
            if self.prefix:
                command = [*self.prefix, sys.executable, "-m", self._module]
                environment = inherited | self._settings
                self._process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)
            else:
                server = fork_server(self._imports, inherited)
                self._process = server.start(self._module, sink.fileno(), self._settings)

    def send(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until the program exits and return its exit status."""
        assert self._process
        return self._process.wait(scaled(30))

    async def async_wait(self) -> int:
        await async_wait_until(lambda: self.status is not None, "the process to exit")
        return self.wait()

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


class ControllerProcess(Process):
    """A controller. It keeps its port when it is restarted."""

    def __init__(self, redis_url: str, log: Path, **settings: object) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.redis_url = redis_url
        defaults = {"redis_url": redis_url, "port": port, "auth": False, "image_workers": 1}
        super().__init__("llava_server", log, _CONTROLLER_MODULES, **{**defaults, **settings})

    @property
    def is_ready(self) -> bool:
        """Whether the controller serves requests and has found a worker."""
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=scaled(5)).status_code == 200
        except httpx2.TransportError:
            return False

    def metric(self, name: str) -> float:
        """Return the sum of all series of a metric, which must exist."""
        text = httpx2.get(f"{self.url}/metrics", timeout=scaled(30)).text
        assert f"# TYPE {name} " in text, f"The server has no metric {name}."
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


class WorkerProcess(Process):
    """A worker. It serves the echo model by default."""

    def __init__(self, redis_url: str, log: Path, **settings: object) -> None:
        settings = {"model": "echo", "redis_url": redis_url, **settings}
        modules: tuple[str, ...] = _ECHO_MODULES if settings["model"] == "echo" else _ENGINE_MODULES
        if settings.get("engine") == "transformers":
            modules = (*_ENGINE_MODULES, *_TRANSFORMERS_MODULES)
        super().__init__("llava_worker", log, modules, **settings)

    @property
    def is_ready(self) -> bool:
        return self.status is None and "worker ready" in self.log

    async def ready(self) -> WorkerProcess:
        await async_wait_until(lambda: "worker ready" in self.log or self.status is not None, "a worker")
        assert self.status is None, self.log
        return self


StartWorker = Callable[..., WorkerProcess]


@contextmanager
def worker_factory(redis_url: str, folder: Path) -> Iterator[StartWorker]:
    """Yield a function that starts a worker with the given settings. Kill all workers at the end."""
    workers: list[WorkerProcess] = []

    def start(**settings: object) -> WorkerProcess:
        workers.append(WorkerProcess(redis_url, folder / f"worker-{len(workers)}.log", **settings))
        workers[-1].start()
        return workers[-1]

    try:
        yield start
    finally:
        for worker in workers:
            worker.kill()


@contextmanager
def running_controller(redis_url: str, folder: Path, **settings: object) -> Iterator[ControllerProcess]:
    """Yield a controller once it has found a worker."""
    controller = ControllerProcess(redis_url, folder / "controller.log", **settings)
    with started(controller):
        yield controller


@contextmanager
def started(controller: ControllerProcess) -> Iterator[None]:
    """Start a controller and wait until it has found a worker. Kill it at the end."""
    try:
        controller.start()
        wait_until(lambda: controller.is_ready or controller.status is not None, "a controller")
        assert controller.status is None, controller.log
        yield
    finally:
        controller.kill()


@contextmanager
def running_site(redis_url: str, folder: Path, **worker_settings: object) -> Iterator[ControllerProcess]:
    """Yield a controller with one worker."""
    with worker_factory(redis_url, folder) as start_worker:
        start_worker(**worker_settings)
        with running_controller(redis_url, folder) as controller:
            yield controller


def free_port() -> int:
    """Return a free port that the system does not assign to outgoing connections (on Linux, from 32768)."""
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as bound, contextlib.suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return port
