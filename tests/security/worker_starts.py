"""Starts workers from one process that has already imported torch, and measures what each start costs.

Importing torch takes seconds, so a `WorkerStarts` imports it once and forks for each start. Each start runs
the worker's real ``main``. The queue's URL leads nowhere: a worker whose model loads exits with status 69.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["LOADED", "REJECTED", "Start", "WorkerStarts"]

LOADED, REJECTED = 69, 1  # exit statuses: the model loaded but there is no queue; the worker cannot start
_CPU_S = 60  # a start that needs more is killed
_MEMORY_BYTES = 6 << 30  # of address space: protects the machine that runs the tests
_FLAGS = ("--device", "cpu", "--threads", "1", "--kv-cache-mb", "8", "--precision", "fp32")
_OTHER_USER = 65534
_NO_QUEUE = "unix:///nonexistent/queue.sock"


@dataclass(frozen=True)
class Start:
    """One start of a worker: its exit status, its output, and the CPU time and memory it used.

    ``cpu_s`` includes child processes. ``grown_bytes`` is the growth of the largest resident set, which may
    be that of a child process.
    """

    status: int
    output: str
    cpu_s: float
    grown_bytes: int

    @property
    def errors(self) -> list[str]:
        """The error lines, without timestamps."""
        return [
            line.partition("ERROR llava_worker: ")[2]
            for line in self.output.splitlines()
            if " ERROR " in line
        ]


class WorkerStarts:
    """Manages the process that starts workers. A context manager."""

    def __enter__(self) -> WorkerStarts:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, folder: Path, *flags: str, log: Path, is_unprivileged: bool = False) -> Start:
        """Start a worker with the model in ``folder``, and wait until it exits.

        If ``is_unprivileged`` is true and this is the superuser, the worker runs as another user.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"folder": str(folder), "flags": flags, "log": str(log), "unprivileged": is_unprivileged}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status, cpu_s, grown_bytes = json.loads(self._process.stdout.readline())
        return Start(status, log.read_text(errors="replace"), cpu_s, grown_bytes)


def _serve() -> None:
    import llava_worker.engine.startup.build_engine
    import llava_worker.engine.structured_output.grammar_cache
    import llava_worker.language.hf_tokenizer
    import llava_worker.worker_process  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        before = _memory("resident")
        pid = os.fork()
        if not pid:
            _run_worker(request)
        _, status, usage = os.wait4(pid, 0)
        grown_bytes = usage.ru_maxrss * 1024 - before
        cpu_s = usage.ru_utime + usage.ru_stime
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), cpu_s, grown_bytes]) + "\n")
        sys.stdout.flush()


def _run_worker(request: dict[str, Any]) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _memory("size") + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from llava_worker.__main__ import main

    if request["unprivileged"] and os.geteuid() == 0:
        os.seteuid(_OTHER_USER)
    sys.argv = ["worker", "--model", request["folder"], "--redis-url", _NO_QUEUE, *_FLAGS, *request["flags"]]
    status = 70
    try:
        status = main()
    except BaseException:  # the interpreter would print it, too
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _memory(name: Literal["size", "resident"]) -> int:
    """Return the size of this process's address space or resident set in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[name == "resident"]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    _serve()
