"""The children of ``up``: started in layers, restarted within a budget, stopped in order, never orphaned."""

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


class SupervisorHarness:
    """A supervisor that records its output lines and events."""

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

    async def wait_until(self, condition: Callable[[], object], what: str) -> None:
        await asyncio.to_thread(wait_until, condition, what)


def run_scenario(
    scenario: Callable[[SupervisorHarness], Awaitable[None]], budget: RestartBudget = FAST
) -> SupervisorHarness:
    """Run ``scenario`` within a supervisor, then stop all children."""

    async def run() -> SupervisorHarness:
        harness = SupervisorHarness(budget)
        async with harness.supervisor:
            await scenario(harness)
        return harness

    return asyncio.run(run())


def has_exited(pid: int) -> bool:
    """Whether a process has exited. Zombies count as exited, because their parent may be gone."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_lines_of_any_length_are_reported_with_the_name_of_the_child() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        script = "printf 'one\\n\\377\\n'; head -c 200000 /dev/zero | tr '\\0' x; echo; printf end; sleep 100"
        await harness.supervisor.start([shell("printer", script)])
        await harness.wait_until(lambda: len(harness.lines) >= 3, "three lines")

    harness = run_scenario(scenario)
    texts = [text for _, text in harness.lines]
    assert texts[:2] == ["one", "\ufffd"]
    assert set(texts[2]) == {"x"}
    assert {name for name, _ in harness.lines} == {"printer"}


def test_progress_bars_are_reported_without_the_sequences_that_control_a_terminal() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        script = r"printf '\n\r 0%%|    |\033[A\n\r14%%|#   |\033[A\r28%%|##  |\n'; sleep 100"
        await harness.supervisor.start([shell("worker-1", script)])
        await harness.wait_until(lambda: len(harness.lines) >= 3, "three lines")

    assert [text for _, text in run_scenario(scenario).lines] == ["", " 0%|    |", "28%|##  |"]


def test_an_exit_during_startup_is_final_and_includes_the_last_lines() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        await harness.supervisor.start([shell("worker-1", "echo no such model; exit 3")])
        await harness.supervisor.watch()

    with pytest.raises(
        ChildFailed, match="worker-1 exited with status 3 before it was ready[.] Correct"
    ) as caught:
        run_scenario(scenario)
    assert caught.value.tail == ("no such model",)


def test_a_missing_program_is_reported() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        await harness.supervisor.start([Program("redis", ("/no/such/program",), dict(os.environ))])
        await harness.supervisor.watch()

    with pytest.raises(ChildFailed, match="status 127") as caught:
        run_scenario(scenario)
    assert caught.value.tail == ("Cannot start /no/such/program: No such file or directory.",)


def test_output_that_can_no_longer_be_read_is_reported() -> None:
    class Broken(SupervisorHarness):
        def show(self, name: str, line: str) -> None:
            raise ValueError("the display is broken")

    async def run() -> None:
        harness = Broken(FAST)
        supervisor = Supervisor(
            on_line=harness.show, on_event=harness.events.append, kill_now=harness.kill_now, budget=FAST
        )
        async with supervisor:
            supervisor.enable_restarts()
            await supervisor.start([shell("worker-1", "while echo line; do sleep 0.01; done")])
            await supervisor.watch()

    with pytest.raises(ValueError, match="the display is broken"):
        asyncio.run(run())


def test_a_child_that_exits_after_startup_is_restarted() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        await harness.supervisor.start([shell("worker-1", "echo $$; sleep 100")])
        await harness.wait_until(lambda: harness.lines, "the first start")
        harness.supervisor.enable_restarts()
        os.kill(int(harness.lines[0][1]), signal.SIGKILL)
        await harness.wait_until(lambda: len(harness.lines) == 2, "the second start")

    harness = run_scenario(scenario)
    assert harness.events == ["worker-1 was killed by SIGKILL; restarting in 0 s"]
    assert has_exited(int(harness.lines[1][1]))


def test_a_child_that_exceeds_the_restart_budget_is_a_failure() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        await harness.supervisor.start([shell("worker-1", "read line < /dev/null; echo bye; exit 1")])
        harness.supervisor.enable_restarts()
        await harness.supervisor.watch()

    with pytest.raises(ChildFailed, match="exited with status 1 after 2 restarts") as caught:
        run_scenario(scenario)
    assert caught.value.tail == ("bye", "bye", "bye")


def test_restarts_outside_the_window_do_not_count() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        await harness.supervisor.start([shell("worker-1", "echo up")])
        harness.supervisor.enable_restarts()
        await harness.wait_until(lambda: len(harness.lines) > 4, "more starts than one window allows")

    run_scenario(scenario, RestartBudget(max_restarts=2, initial_delay_s=0.0, window_s=0.0))


def test_restart_delays_double_until_the_limit_or_the_end_of_the_budget() -> None:
    waits = [RestartBudget().delay_s(n) for n in range(6)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, None]
    assert RestartBudget(max_restarts=20).delay_s(10) == 15.0


def test_children_are_stopped_in_reverse_order_of_layers(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def logging_program(name: str) -> Program:
        return shell(name, f"trap 'echo {name} >> {log}; exit' TERM; echo up; while :; do sleep 0.05; done")

    async def scenario(harness: SupervisorHarness) -> None:
        for layer in (["redis"], ["worker-1", "worker-2"], ["server"]):
            await harness.supervisor.start([logging_program(name) for name in layer])
        await harness.wait_until(lambda: len(harness.lines) == 4, "all four")

    run_scenario(scenario)
    order = log.read_text().split()
    assert (order[0], order[-1], len(order)) == ("server", "redis", 4)


@pytest.mark.parametrize("trigger", ["grace period", "kill now"])
def test_a_child_that_ignores_sigterm_is_killed_with_its_process_group(trigger: str) -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        script = "trap '' TERM; sleep 100 & echo $!; wait; wait; sleep 100"
        grace_s = 0.1 if trigger == "grace period" else 1000.0
        await harness.supervisor.start([shell("stubborn", script, grace_s=grace_s)])
        await harness.wait_until(lambda: harness.lines, "the child to start")
        if trigger == "kill now":
            harness.kill_now.set()

    harness = run_scenario(scenario)
    wait_until(lambda: has_exited(int(harness.lines[0][1])), "the grandchild to exit")


def test_children_do_not_receive_ctrl_c_from_the_terminal() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        await harness.supervisor.start([shell("worker-1", "echo $$; sleep 100")])
        await harness.wait_until(lambda: harness.lines, "the child to start")
        assert os.getpgid(int(harness.lines[0][1])) != os.getpgid(0)

    run_scenario(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent death signal requires Linux")
def test_children_are_killed_together_with_their_parent(tmp_path: Path) -> None:
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
        assert not has_exited(child)
        process.kill()
    wait_until(lambda: has_exited(child), "the child to exit")


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exited with status 0"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_exit_statuses_are_described(status: int, words: str) -> None:
    assert describe_exit(status) == words


def test_workers_killed_on_request_are_restarted_without_using_the_restart_budget() -> None:
    async def scenario(harness: SupervisorHarness) -> None:
        worker = Program(
            "worker-1", ("sh", "-c", "echo $$; exec sleep 100"), dict(os.environ), is_worker=True
        )
        other = shell("other", "echo $$; exec sleep 100")
        await harness.supervisor.start([worker, other])
        harness.supervisor.enable_restarts()

        def pids(name: str) -> list[int]:
            return [int(line) for child, line in harness.lines if child == name]

        await harness.wait_until(lambda: pids("other"), "the other program")
        for number in range(FAST.max_restarts + 2):
            await harness.wait_until(lambda n=number: len(pids("worker-1")) > n, "the worker")  # type: ignore[misc]
            assert harness.supervisor.kill(pids("worker-1")[-1])
        await harness.wait_until(lambda: len(pids("worker-1")) > FAST.max_restarts + 2, "the last restart")
        assert not harness.supervisor.kill(pids("other")[-1])
        assert not harness.supervisor.kill(os.getpid())
        assert not has_exited(pids("other")[-1])

    run_scenario(scenario)
