"""Children of ``up``: started in layers, repaired with a budget, stopped in order, never orphaned."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from llava_cli.up.child_process import Program, describe_exit
from llava_cli.up.supervisor import ChildFailed, RestartBudget, Supervisor

from tests.waiting import wait_until

FAST = RestartBudget(max_restarts=2, initial_delay_s=0.0)


def shell(name: str, script: str, *, grace_s: float = 20.0) -> Program:
    return Program(name, ("sh", "-c", script), dict(os.environ), stop_grace_s=grace_s)


class Stage:
    """A supervisor with what it reported."""

    def __init__(self, budget: RestartBudget) -> None:
        self.lines: list[tuple[str, str]] = []
        self.events: list[str] = []
        self.kill_now = asyncio.Event()
        self.supervisor = Supervisor(
            on_line=lambda name, line: self.lines.append((name, line)),
            on_event=self.events.append,
            kill_now=self.kill_now,
            budget=budget,
        )

    async def until(self, condition: Callable[[], object], what: str) -> None:
        await asyncio.to_thread(wait_until, condition, what)


def play(scenario: Callable[[Stage], Awaitable[None]], budget: RestartBudget = FAST) -> Stage:
    """Run ``scenario`` inside a supervisor, and stop everything after it."""

    async def run() -> Stage:
        stage = Stage(budget)
        async with stage.supervisor:
            await scenario(stage)
        return stage

    return asyncio.run(run())


def is_gone(pid: int) -> bool:
    """Ended; an unreaped zombie counts, since nobody may be left to reap it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_lines_are_told_with_the_childs_name_whatever_their_length() -> None:
    async def scenario(stage: Stage) -> None:
        script = "printf 'one\\n\\377\\n'; head -c 200000 /dev/zero | tr '\\0' x; echo; printf end; sleep 100"
        await stage.supervisor.start([shell("talker", script)])
        await stage.until(lambda: len(stage.lines) >= 3, "three lines")

    stage = play(scenario)
    texts = [text for _, text in stage.lines]
    assert texts[:2] == ["one", "\ufffd"]
    assert set(texts[2]) == {"x"}
    assert {name for name, _ in stage.lines} == {"talker"}


def test_a_death_before_all_is_up_is_final_and_shows_the_last_words() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.supervisor.start([shell("worker-1", "echo no such model; exit 3")])
        await stage.supervisor.watch()

    with pytest.raises(ChildFailed, match="worker-1 ended with status 3 before it was ready") as caught:
        play(scenario)
    assert caught.value.tail == ("no such model",)


def test_a_program_that_is_not_there_says_so() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.supervisor.start([Program("redis", ("/no/such/program",), dict(os.environ))])
        await stage.supervisor.watch()

    with pytest.raises(ChildFailed, match="status 127") as caught:
        play(scenario)
    assert caught.value.tail == ("cannot start /no/such/program: No such file or directory",)


def test_a_death_after_all_is_up_is_repaired() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.supervisor.start([shell("worker-1", "echo $$; sleep 100")])
        await stage.until(lambda: stage.lines, "the first start")
        stage.supervisor.enable_restarts()
        os.kill(int(stage.lines[0][1]), signal.SIGKILL)
        await stage.until(lambda: len(stage.lines) == 2, "the second start")

    stage = play(scenario)
    assert stage.events == ["worker-1 was killed by SIGKILL; starting it again in 0 s"]
    assert is_gone(int(stage.lines[1][1]))


def test_a_child_that_dies_again_and_again_ends_everything() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.supervisor.start([shell("worker-1", "read line < /dev/null; echo bye; exit 1")])
        stage.supervisor.enable_restarts()
        await stage.supervisor.watch()

    with pytest.raises(ChildFailed, match="ended with status 1 after 2 restarts") as caught:
        play(scenario)
    assert caught.value.tail == ("bye", "bye", "bye")


def test_old_restarts_do_not_count() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.supervisor.start([shell("worker-1", "echo up")])
        stage.supervisor.enable_restarts()
        await stage.until(lambda: len(stage.lines) > 4, "more starts than the budget of one window")

    play(scenario, RestartBudget(max_restarts=2, initial_delay_s=0.0, window_s=0.0))


def test_waits_double_up_to_the_limit_until_the_budget_is_used_up() -> None:
    waits = [RestartBudget().delay_s(n) for n in range(6)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, None]
    assert RestartBudget(max_restarts=20).delay_s(10) == 15.0


def test_children_are_stopped_from_the_last_layer_to_the_first(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def noting(name: str) -> Program:
        return shell(name, f"trap 'echo {name} >> {log}; exit' TERM; echo up; while :; do sleep 0.05; done")

    async def scenario(stage: Stage) -> None:
        for layer in (["redis"], ["worker-1", "worker-2"], ["server"]):
            await stage.supervisor.start([noting(name) for name in layer])
        await stage.until(lambda: len(stage.lines) == 4, "all four")

    play(scenario)
    order = log.read_text().split()
    assert (order[0], order[-1], len(order)) == ("server", "redis", 4)


@pytest.mark.parametrize("way", ["its grace is over", "kill now"])
def test_a_child_that_will_not_stop_is_killed_with_all_it_started(way: str) -> None:
    async def scenario(stage: Stage) -> None:
        script = "trap '' TERM; sleep 100 & echo $!; wait; wait; sleep 100"
        grace_s = 0.1 if way == "its grace is over" else 1000.0
        await stage.supervisor.start([shell("stubborn", script, grace_s=grace_s)])
        await stage.until(lambda: stage.lines, "its start")
        if way == "kill now":
            stage.kill_now.set()

    stage = play(scenario)
    wait_until(lambda: is_gone(int(stage.lines[0][1])), "the end of what the child started")


def test_children_do_not_see_ctrl_c_of_the_terminal() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.supervisor.start([shell("worker-1", "echo $$; sleep 100")])
        await stage.until(lambda: stage.lines, "its start")
        assert os.getpgid(int(stage.lines[0][1])) != os.getpgid(0)

    play(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = textwrap.dedent(
        """
        import asyncio, os
        from llava_cli.up.child_process import Program
        from llava_cli.up.supervisor import Supervisor

        async def main():
            supervisor = Supervisor(on_line=lambda _, pid: print(pid, flush=True), on_event=print,
                                    kill_now=asyncio.Event())
            await supervisor.start([Program("a", ("sh", "-c", "echo $$; exec sleep 1000"), dict(os.environ))])
            await asyncio.sleep(1000)

        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert not is_gone(child)
        process.kill()
    wait_until(lambda: is_gone(child), "the end of the child")


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "ended with status 0"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_an_exit_is_told_in_words(status: int, words: str) -> None:
    assert describe_exit(status) == words
