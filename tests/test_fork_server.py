"""A program of a `ForkServer` behaves like one that ``python -m`` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fork_server import ForkServer, Program, fork_server
from tests.machine_speed import scaled
from tests.waiting import wait_until

MODULE = "tests.forked_program"
ENVIRONMENT = {"PATH": os.environ["PATH"], "OF_THE_SERVER": "1"}
Start = Callable[..., Program]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer(["json"], ENVIRONMENT)
    yield server
    server.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(server: ForkServer, log: Path) -> Start:
    def start(module: str = MODULE, **variables: str) -> Program:
        with log.open("wb") as sink:
            return server.start(module, sink.fileno(), variables)

    return start


def test_a_program_equals_one_that_an_interpreter_starts(start: Start, log: Path) -> None:
    program = start(STATUS="0")
    assert program.wait(scaled(30)) == 0
    forked = json.loads(log.read_text())

    command = [sys.executable, "-m", MODULE]
    variables = {**ENVIRONMENT, "STATUS": "0"}
    interpreted = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True)

    assert forked.pop("pid") == program.pid != os.getpid()
    assert forked == {key: value for key, value in json.loads(interpreted.stdout).items() if key != "pid"}


def test_programs_with_the_same_environment_share_their_imports(tmp_path: Path) -> None:
    (tmp_path / "imported.py").write_text("import os\nNUMBER = f\"{os.environ['NUMBER']} {os.getpid()}\"\n")
    (tmp_path / "program.py").write_text("import imported\nprint(imported.NUMBER)\n")

    def output(number: str) -> list[str]:
        environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path), "NUMBER": number}
        with (tmp_path / "log").open("w+") as log:
            program = fork_server(["imported"], environment).start("program", log.fileno(), {})
            assert program.wait(scaled(30)) == 0
            log.seek(0)
            return log.read().split()

    first, again, other = output("1"), output("1"), output("2")

    assert first == again
    assert first[0] == "1" and other[0] == "2"
    assert first[1] != other[1]


def test_the_exit_status_is_that_of_the_program(start: Start) -> None:
    first, second = start(STATUS="3"), start(STATUS="69")

    assert second.wait(scaled(30)) == 69
    assert first.wait(scaled(30)) == 3
    assert first.poll() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_ends_a_program_but_not_the_others(number: signal.Signals, start: Start, log: Path) -> None:
    waiting = start(WAIT="1")
    wait_until(lambda: log.read_text().endswith("\n"), "the program")
    other = start(WAIT="1")
    wait_until(lambda: log.read_text().endswith("\n"), "the other program")

    assert waiting.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0)
    waiting.send_signal(number)

    # An interpreter that is interrupted by SIGINT ends itself with the signal after the traceback.
    assert waiting.wait(scaled(30)) == -number
    assert other.poll() is None
    other.kill()
    assert other.wait(scaled(30)) == -signal.SIGKILL


def test_a_program_that_fails_reports_its_traceback(start: Start, log: Path) -> None:
    assert start("tests.no_such_program").wait(scaled(30)) == 1
    assert "No module named tests.no_such_program" in log.read_text()
