"""Runs a stage in a child process. At its deadline, it is killed together with all of its descendants."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

import psutil

from bench.gpu.session.results import Results

__all__ = ["adopt_orphans", "run_stage"]

_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_MAX_LOG_BYTES = 8 << 20
_GRACE_S = 2.0  # time for the child to record the end of a measurement after its deadline
_KILL_S = 10.0
_MIN_LEFT_S = 3.0  # a process needs at least this long to start


def adopt_orphans() -> None:
    """Become the parent of all descendants whose parent exits, so that `run_stage` finds them."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def run_stage(module: str, results: Results, *, seconds: float, is_rehearsal: bool, log: Path) -> str:
    """Run the measurements of a module until ``seconds`` have passed. Return "" or the reason it ended early.

    If the child process exits before its last measurement, a new one continues with the next measurement.
    The output of the processes is appended to ``log``.
    """
    deadline = time.monotonic() + seconds
    num_lines = -1
    while True:
        left_s = deadline - time.monotonic()
        if left_s < _MIN_LEFT_S:
            return "out of time"
        status = _run_child(module, results.path.parent, left_s, is_rehearsal, log)
        if status == 0:
            return ""
        if status is None:
            return "out of time"
        before, num_lines = num_lines, sum(1 for _ in results.lines())
        if num_lines == before:
            return f"the process exited with status {status} before the first measurement"


def _run_child(module: str, folder: Path, seconds: float, is_rehearsal: bool, log: Path) -> int | None:
    """Return the exit status, or None if the process had to be killed."""
    command = [sys.executable, "-m", "bench.gpu.session.stage", module, "--out", str(folder)]
    command += ["--seconds", f"{seconds:.1f}", *(["--rehearse"] if is_rehearsal else [])]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as file:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        assert child.stdout is not None
        copying = threading.Thread(target=_copy, args=(child.stdout, file), daemon=True)
        copying.start()
        try:
            return child.wait(seconds + _GRACE_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_descendants()
            child.wait()
            copying.join(_KILL_S)


def _copy(source: IO[bytes], target: BinaryIO) -> None:
    """Copy the output of a process until its end, but do not let the log exceed its maximum size."""
    while chunk := source.read1(65536):  # type: ignore[attr-defined]
        target.write(chunk[: max(0, _MAX_LOG_BYTES - target.tell())])
        target.flush()


def _kill_descendants() -> None:
    """Kill all descendants of this process. Repeat this, because a process may be starting another one."""
    deadline = time.monotonic() + _KILL_S
    while time.monotonic() < deadline:
        running = [each for each in psutil.Process().children(recursive=True) if _is_running(each)]
        if not running:
            return
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=1.0)


def _is_running(process: psutil.Process) -> bool:
    """Return whether the process has not ended. The kernel lists it until its parent reads its status."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
