"""A child process for computations that can crash, never end, or use all memory.

    parent:  SandboxedProcess.request(value)  --JSON line-->  child:  serve(open_handler)  -->  handler(value)
                                              <--JSON line--

The child has these limits. If it exceeds one of them, it ends, and only the request in progress fails.

- CPU time per request: the kernel ends the child with SIGPROF, also during a call into C code.
- Address space: it can grow by a fixed size after the start.
- Time until the reply, measured by the parent.

By default, the child has the same CPU priority as the parent. With ``has_low_priority``, it uses the CPU time
that other processes leave, so it does not delay the threads of the engine.

The child's only environment variables are PYTHONPATH and TZ, and it writes no core dumps. It exits when its
stdin is closed, which also happens if the worker is killed. A computation that is running at that moment
ends at the latest when its CPU time is used up.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Literal

from llava_worker.cpu_priority import lower_priority

__all__ = ["ProcessFailure", "ProcessLimits", "SandboxedProcess", "serve"]

_START_S = 60.0  # timeout for starting Python and calling ``open_handler``, even on a busy machine
_OUT_OF_MEMORY = 71  # exit status of the child


class ProcessFailure(Exception):
    """The child exceeded its limit of time or memory, or it crashed. The next request uses a new child."""

    def __init__(self, reason: Literal["time", "memory", "crash"]) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ProcessLimits:
    """The limits of a child process. A limit of 0 for ``cpu_s`` disables the limit of CPU time."""

    cpu_s: float
    timeout_s: float
    memory_bytes: int


class SandboxedProcess:
    """Manages at most one child process, which handles one request at a time. Thread-safe.

    The child is started by the first request or by `start`. It is killed when the object is deleted.
    """

    def __init__(
        self, module: str, limits: ProcessLimits, *, setup: object = None, has_low_priority: bool = False
    ) -> None:
        """Create the object. ``module`` calls `serve` if it is run as a program.

        ``setup`` is passed to ``open_handler``. Like all requests and replies, it must be a JSON value.
        """
        self.limits = limits
        self._module = module
        self._setup = _encode(setup)
        self._has_low_priority = has_low_priority
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._kill: weakref.finalize[..., Any] | None = None

    def start(self) -> None:
        """Start the child without waiting until it is ready. Has no effect if it is running."""
        with self._lock:
            self._started()

    def request(self, value: object) -> Any:
        """Send a value to the handler and return its reply. Raises ProcessFailure."""
        line = _encode(value)
        with self._lock:
            child = self._started()
            try:
                if not self._is_ready:
                    _exchange(child, self._setup, _START_S)
                    self._is_ready = True
                return _exchange(child, line, self.limits.timeout_s)
            except TimeoutError as error:
                reason: Literal["time", "crash"] = "time" if self._is_ready else "crash"
                self._end()
                raise ProcessFailure(reason) from error
            except (EOFError, OSError) as error:
                self._end()
                raise _failure(child.returncode) from error

    def close(self) -> None:
        """Kill the child if it is running. A later request starts a new one."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            if "TZ" in os.environ:
                environment["TZ"] = os.environ["TZ"]
            self._child = subprocess.Popen(
                [sys.executable, "-m", self._module, *map(str, astuple(self.limits))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            if self._has_low_priority:
                lower_priority(self._child.pid)
            self._is_ready = False
            self._kill = weakref.finalize(self, _kill, self._child)
        return self._child

    def _end(self) -> None:
        self._child = None
        if self._kill is not None:
            self._kill()


def serve(open_handler: Callable[[Any], Callable[[Any], object]]) -> None:
    """Handle requests in the child until stdin is closed.

    ``open_handler`` receives ``setup`` and returns the handler. Only the handler's memory and CPU time are
    limited.
    """
    cpu_s, _, memory_bytes = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    handle = open_handler(json.loads(sys.stdin.buffer.readline()))
    limit = _address_space_bytes() + int(memory_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _reply(b"null\n")
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, float(cpu_s))
        try:
            reply = _encode(handle(json.loads(line)))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(reply)


def _exchange(child: subprocess.Popen[bytes], line: bytes, timeout_s: float) -> Any:
    """Send a line and return the decoded reply.

    Raises TimeoutError if the child does not reply in time, EOFError if the child closes its stdout, and
    OSError if the child has already exited.
    """
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(line)
    child.stdin.flush()
    reply, deadline = bytearray(), time.monotonic() + timeout_s
    while not reply.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([child.stdout], [], [], left_s)[0]:
            raise TimeoutError
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece:
            raise EOFError
        reply += piece
    return json.loads(reply)


def _failure(status: int) -> ProcessFailure:
    """Return the failure for a child's exit status."""
    if status == -signal.SIGPROF:
        return ProcessFailure("time")
    return ProcessFailure("memory" if status == _OUT_OF_MEMORY else "crash")


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()  # waits until the child has exited, and closes the pipes


def _address_space_bytes() -> int:
    """Return the size of this process's address space, or 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def _encode(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _reply(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
