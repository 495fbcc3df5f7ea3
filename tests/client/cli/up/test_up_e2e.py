"""``llava-serve up`` end to end with a real Redis, server and worker (echo model)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from llava_client import AuthenticationError, Client

from tests.client.cli.command_line import start
from tests.machine_speed import scaled
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


class Running:
    """A running ``up`` command: its URL, its processes and its temporary folder."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.shown = ""
        self.url = ""
        self.key: str | None = None

    def read_panel(self) -> None:
        self.read_until("openai.OpenAI()")
        facts = dict(line.split(maxsplit=1) for line in self.shown.splitlines() if line.count(" ") > 1)
        self.url = facts["playground"]
        self.key = facts["API"].removeprefix("key").strip() if "API key" in self.shown else None

    def read_until(self, text: str) -> None:
        """Read the output up to this text."""
        assert self.process.stdout is not None
        while text not in self.shown:
            letter = self.process.stdout.read(1)
            assert letter, self.process.stderr.read() if self.process.stderr else ""
            self.shown += letter

    def processes(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def child(self, word: str) -> psutil.Process:
        return next(process for process in self.processes() if word in " ".join(process.cmdline()))

    def ask(self, **options: object) -> str:
        with Client(self.url, **options) as client:  # type: ignore[arg-type]
            return client.chat("Say something", max_tokens=5).text


def have_exited(processes: list[psutil.Process]) -> bool:
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


@contextmanager
def running(*arguments: str) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="up") as folder:
        command = ("up", "--model", "echo", "--port", "0", *arguments)
        with start(*command, env={"TMPDIR": folder}, cwd=folder) as process:
            started = Running(process, Path(folder))
            try:
                started.read_panel()
                yield started
            finally:
                process.kill()


@pytest.fixture(scope="module")
def shared_up() -> Iterator[Running]:
    with running() as up:
        yield up


def test_up_starts_serves_a_request_and_leaves_nothing_behind() -> None:
    with running() as up:
        assert up.ask()
        processes = up.processes()
        assert len(processes) >= 3
        assert [path.name[:18] for path in up.folder.iterdir()] == ["llava-serve-redis-"]
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(scaled(60)) == 0
        wait_until(lambda: have_exited(processes), "all processes to exit")
        assert list(up.folder.iterdir()) == []


def test_sigterm_during_a_response_stops_gracefully() -> None:
    with running() as up, Client(up.url) as client:
        with client.stream("Say something", max_tokens=5) as stream:
            up.process.send_signal(signal.SIGTERM)
            assert stream.answer().finish_reason
        processes = up.processes()
        assert up.process.wait(scaled(60)) == 0
        wait_until(lambda: have_exited(processes), "all processes to exit")


@pytest.mark.parametrize("is_nohup", [False, True])
def test_a_closed_terminal_stops_up_unless_it_runs_under_nohup(is_nohup: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_nohup else signal.SIG_DFL)
    try:
        with running() as up:
            up.process.send_signal(signal.SIGHUP)
            if is_nohup:
                assert up.ask()
                up.process.send_signal(signal.SIGTERM)
            assert up.process.wait(scaled(60)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent death signal requires Linux")
def test_killing_the_parent_kills_all_processes() -> None:
    with running("--workers", "2") as up:
        processes = up.processes()
        assert sum("llava_worker" in " ".join(process.cmdline()) for process in processes) == 2
        up.process.kill()
        wait_until(lambda: have_exited(processes), "all processes to exit")


def test_a_host_other_than_loopback_requires_the_printed_key() -> None:
    with running("--host", "0.0.0.0") as up:
        with pytest.raises(AuthenticationError):
            up.ask(max_retries=0)
        assert up.key is not None
        assert up.ask(api_key=up.key)


def test_a_missing_model_stops_up_with_the_last_lines_of_the_worker() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="up") as folder:
        command = ("up", "--model", "/no/such/model", "--port", "0")
        _, stderr = (process := start(*command, env={"TMPDIR": folder})).communicate(timeout=scaled(100))
        assert process.returncode == 1
        assert "worker-1 exited with status" in stderr
        assert "/no/such/model" in stderr
        assert "Traceback" not in stderr
        assert os.listdir(folder) == []


def test_an_external_redis_is_used_and_not_stopped(shared_up: Running) -> None:
    path = next(shared_up.folder.glob("*/redis.sock"))
    with running("--redis-url", f"unix://{path}") as second:
        assert second.ask()
        assert not any("redis" in process.name() for process in second.processes())
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(scaled(60)) == 0
    assert shared_up.ask()


def operate(up: Running, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run an operator command like the user who started ``up``. Return its exit code, stdout and stderr."""
    process = start(*arguments, env={"TMPDIR": str(up.folder), **variables})
    output, errors = process.communicate(timeout=scaled(60))
    return process.returncode, output, errors


def test_operator_commands_find_the_queue_of_a_running_up(shared_up: Running) -> None:
    assert operate(shared_up, "keys", "create", "alice")[0] == 0
    status, output, errors = operate(shared_up, "keys", "list")
    assert (status, "alice" in output) == (0, True)
    assert f"unix://{shared_up.folder}/llava-serve-redis-" in errors
    status, output, _ = operate(shared_up, "top", "--once")
    assert (status, "echo" in output) == (0, True)


def test_the_printed_command_adds_a_worker_to_a_running_up(shared_up: Running) -> None:
    shared_up.read_until("another worker of this server\n")
    shared_up.read_until("--device auto\n")
    line = shared_up.shown.splitlines()[-1]
    assert line.startswith(f"LLAVA_REDIS_URL=unix://{shared_up.folder}/llava-serve-redis-")
    worker = subprocess.Popen(["sh", "-c", f"exec env {line}"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: "2 workers" in operate(shared_up, "top", "--once")[1], "the second worker")
    finally:
        worker.terminate()
        worker.wait(scaled(60))
    assert shared_up.ask()


def test_a_configured_queue_is_preferred_to_that_of_a_running_up(shared_up: Running) -> None:
    other = "unix:///nowhere/redis.sock"
    status, _, errors = operate(shared_up, "top", "--once", LLAVA_REDIS_URL=other)
    assert (status, "using the queue" in errors) == (69, False)
    status, _, errors = operate(shared_up, "top", "--once", f"--redis-url={other}")
    assert (status, "using the queue" in errors) == (69, False)


def test_operator_commands_do_not_choose_between_two_queues(shared_up: Running) -> None:
    second = shared_up.folder / "llava-serve-redis-second"
    second.mkdir()
    handle = os.open(second, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as redis:
            redis.bind(str(second / "redis.sock"))
            fcntl.flock(handle, fcntl.LOCK_EX)
            status, output, errors = operate(shared_up, "keys", "list")
        assert (status, output) == (2, "")
        assert "Set LLAVA_REDIS_URL" in errors and errors.count("unix://") == 2
    finally:
        os.close(handle)
        shutil.rmtree(second)


def test_ask_with_json_prints_the_response_of_the_server(shared_up: Running) -> None:
    process = start("ask", "Say something", "--json", "--max-tokens", "5", "--base-url", shared_up.url)
    stdout, _ = process.communicate(timeout=scaled(60))
    answer = json.loads(stdout)
    assert (answer["model"], answer["finish_reason"]) == ("echo", "length")


@pytest.mark.parametrize("part", ["llava_worker", "llava_server", "redis"])
def test_a_crashed_process_is_restarted_and_requests_succeed(shared_up: Running, part: str) -> None:
    assert shared_up.ask()
    killed = shared_up.child(part)
    killed.kill()
    wait_until(lambda: have_exited([killed]), "the killed process to exit")
    assert shared_up.ask(max_retries=8)
