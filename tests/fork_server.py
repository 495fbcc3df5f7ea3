"""Starts Python programs as forks of a process that has already imported their modules.

Importing the controller takes a second of CPU time, and importing torch takes two. A `ForkServer` imports
them once, so that tests can start many controllers and workers. Each program is a process of its own and runs
its module as ``python -m`` does. Programs share only what imports have created, so tests of start-up itself
must start an interpreter instead. Imports can depend on environment variables, such as PYTHONPATH and
OMP_NUM_THREADS, so there is a server for each environment.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

__all__ = ["ForkServer", "Program", "fork_server"]

_MAX_REQUEST_BYTES = 1 << 20


class _Request(TypedDict):
    module: str
    folder: str
    settings: dict[str, str]


class Program:
    """A started program, with the interface of ``subprocess.Popen`` as far as tests need it."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self._status = status  # receives the exit status
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while the program is running, or the negative number of a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raises subprocess.TimeoutExpired."""
        if self._exit_code is None:
            readable, _, _ = select.select([self._status], [], [], timeout)
            if not readable:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            with self._status:
                self._exit_code = int(self._status.recv(16))
        return self._exit_code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that imports ``modules`` and starts programs. It ends together with this process."""

    def __init__(self, modules: Iterable[str], environment: Mapping[str, str]) -> None:
        self._requests, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with requests:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(requests.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                pass_fds=[requests.fileno()],
                env=environment,
            )
        atexit.register(self.close)

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def start(self, module: str, log: int, settings: Mapping[str, str]) -> Program:
        """Run a module as ``__main__``, with ``log`` (a file descriptor) as its output.

        ``settings`` are added to the environment. Modules must read them after their import.
        """
        request: _Request = {"module": module, "folder": str(Path.cwd()), "settings": dict(settings)}
        status, reported = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with reported:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [log, reported.fileno()])
        return Program(int(status.recv(16)), status)


def fork_server(modules: Iterable[str], environment: Mapping[str, str]) -> ForkServer:
    """Return the server with these modules and this environment, which all tests of this process share."""
    return _shared_server(frozenset(modules), frozenset(environment.items()))


@functools.cache
def _shared_server(modules: frozenset[str], environment: frozenset[tuple[str, str]]) -> ForkServer:
    return ForkServer(sorted(modules), dict(environment))


def _serve(requests: socket.socket) -> str:
    """Fork for each request until the tests end. In each fork, return the name of the module to run."""
    running: dict[int, socket.socket] = {}
    wakeup, wakeup_writer = socket.socketpair()
    wakeup_writer.setblocking(False)
    signal.set_wakeup_fd(wakeup_writer.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and the programs
    gc.freeze()  # otherwise, a collection in a program copies all pages that it shares with this process
    while True:
        readable, _, _ = select.select([requests, wakeup], [], [])
        if wakeup in readable:
            wakeup.recv(4096)
            _report_exits(running)
        if requests not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 2)
        if not message:
            sys.exit()
        log, reported = descriptors[0], socket.socket(fileno=descriptors[1])
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for inherited in (requests, wakeup, wakeup_writer, reported, *running.values()):
                inherited.close()
            return _enter(json.loads(message), log)
        os.close(log)
        running[pid] = reported
        reported.send(str(pid).encode())


def _report_exits(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as reported, contextlib.suppress(BrokenPipeError):  # no test waits for it
            reported.send(str(os.waitstatus_to_exitcode(status)).encode())


def _enter(request: _Request, log: int) -> str:
    """Change this process's state into that of a new interpreter. Return the name of the module to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    os.chdir(request["folder"])
    os.environ.update(request["settings"])
    sys.argv = [request["module"]]
    return request["module"]


def _main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        importlib.import_module(name)
        if name.endswith(".__main__"):
            del sys.modules[name]  # runpy warns about it
    runpy.run_module(_serve(requests), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
