"""The limits of the child process for dangerous computations. It does not outlive the worker."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from llava_worker.sandboxed_process import ProcessFailure, ProcessLimits, SandboxedProcess

from tests.machine_speed import scaled
from tests.waiting import wait_until

PROGRAM = "tests.worker.sandboxed_program"
LIMITS = ProcessLimits(cpu_s=0.3, timeout_s=600.0, memory_bytes=100 << 20)
# Starts a child, prints its ID, optionally makes it busy, and then waits until it is killed.
WORKER = f"""
import sys, threading
from llava_worker.sandboxed_process import ProcessLimits, SandboxedProcess
process = SandboxedProcess({PROGRAM!r}, ProcessLimits(cpu_s=1.0, timeout_s=600.0, memory_bytes=100 << 20))
print(process.request("pid"), flush=True)
if sys.argv[1] == "busy":
    process.request("spin")
sys.stdin.read()
"""


@pytest.fixture
def process() -> Iterator[SandboxedProcess]:
    process = SandboxedProcess(PROGRAM, LIMITS, setup={"a": ["<é>"]})
    yield process
    process.close()


def wait_for_exit(pid: int) -> None:
    """Wait until a process that is not a child of this process has exited."""
    try:
        psutil.Process(pid).wait(scaled(30.0))
    except psutil.NoSuchProcess:
        return


def test_one_child_handles_all_requests(process: SandboxedProcess) -> None:
    assert process.request("setup") == {"a": ["<é>"]}
    assert process.request("pid") == process.request("pid")


def test_child_does_not_inherit_secrets(process: SandboxedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_SECRET", "x")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    names = set(process.request("environment"))
    own = {"LC_CTYPE", "THP_MEM_ALLOC_ENABLE", "GOMP_SPINCOUNT"}  # the child sets these itself
    assert names - own == {"PYTHONPATH", "TZ"}


@pytest.mark.parametrize(("has_low_priority", "niceness"), [(True, 10), (False, 0)])
def test_a_child_with_low_priority_runs_when_other_processes_leave_cpu_time(
    has_low_priority: bool, niceness: int
) -> None:
    process = SandboxedProcess(PROGRAM, LIMITS, has_low_priority=has_low_priority)
    try:
        child = psutil.Process(process.request("pid"))
        assert child.nice() == min(os.nice(0) + niceness, 19)
    finally:
        process.close()


@pytest.mark.parametrize(
    ("action", "reason"),
    [("spin", "time"), ("spin in C", "time"), ("use memory", "memory"), ("crash", "crash")],
)
def test_exceeded_limit_fails_only_the_request_in_progress(
    process: SandboxedProcess, action: str, reason: str
) -> None:
    pid = process.request("pid")
    with pytest.raises(ProcessFailure) as raised:
        process.request(action)
    assert raised.value.reason == reason
    assert process.request("pid") != pid


def test_cpu_time_is_limited_per_request_and_not_in_total(process: SandboxedProcess) -> None:
    pid = process.request("pid")
    for _ in range(5):
        process.request("work")  # 0.1 seconds
    assert process.request("pid") == pid


def test_child_that_does_not_reply_in_time_is_killed() -> None:
    process = SandboxedProcess(PROGRAM, ProcessLimits(cpu_s=600.0, timeout_s=0.2, memory_bytes=100 << 20))
    process.start()
    with pytest.raises(ProcessFailure) as raised:
        process.request("sleep")
    assert raised.value.reason == "time"


def test_program_that_cannot_start_is_a_crash() -> None:
    process = SandboxedProcess("tests.worker.no_such_program", LIMITS)
    with pytest.raises(ProcessFailure) as raised:
        process.request("pid")
    assert raised.value.reason == "crash"


def test_deleted_process_is_killed() -> None:
    process = SandboxedProcess(PROGRAM, LIMITS)
    pid = process.request("pid")
    del process
    gc.collect()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_child_exits_if_the_worker_is_killed(state: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        if state == "busy":
            wait_until(lambda: psutil.Process(pid).cpu_times().user >= 0.3)  # far more than the start needs
        worker.kill()
        wait_for_exit(pid)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
