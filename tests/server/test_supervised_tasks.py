"""A task that crashes is logged, counted and either restarted or ended."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import aclosing

import pytest
from llava_server.supervised_tasks import SupervisedTasks

from tests.waiting import async_wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Unstable:
    """A task that crashes ``num_crashes`` times and then returns."""

    def __init__(self, num_crashes: int, error: BaseException) -> None:
        self.num_crashes = num_crashes
        self.num_runs = 0
        self._error = error

    async def run(self) -> None:
        self.num_runs += 1
        if self.num_runs <= self.num_crashes:
            raise self._error


async def test_a_crash_is_logged_with_its_traceback_counted_and_followed_by_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    crashes: list[str] = []
    unstable = Unstable(2, RuntimeError("a defect"))
    async with aclosing(SupervisedTasks(crashes.append)) as tasks:
        await asyncio.wait({tasks.start("poll", unstable.run)})
    assert (unstable.num_runs, crashes) == (3, ["poll", "poll"])
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "the task 'poll' crashed, restarting it in 0.1 s",
        "the task 'poll' crashed, restarting it in 0.2 s",
    ]
    assert all(record.exc_info and record.exc_info[1] is unstable._error for record in errors)


async def test_a_task_that_returns_is_not_restarted() -> None:
    unstable = Unstable(0, RuntimeError())
    async with aclosing(SupervisedTasks()) as tasks:
        await asyncio.wait({tasks.start("once", unstable.run)})
    assert unstable.num_runs == 1


@pytest.mark.parametrize("max_restarts", [0, 2])
async def test_a_task_ends_after_its_last_restart(max_restarts: int) -> None:
    crashes: list[str] = []
    final_crashes: list[BaseException] = []
    unstable = Unstable(10, RuntimeError("a defect"))
    async with aclosing(SupervisedTasks(crashes.append)) as tasks:
        task = tasks.start(
            "poll", unstable.run, max_restarts=max_restarts, on_final_crash=final_crashes.append
        )
        await asyncio.wait({task})
    assert unstable.num_runs == len(crashes) == max_restarts + 1
    assert final_crashes == [unstable._error]


async def test_closing_cancels_running_tasks_and_pending_restarts() -> None:
    unstable = Unstable(10, RuntimeError("a defect"))
    was_cancelled = False

    async def wait_forever() -> None:
        nonlocal was_cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled = True
            raise

    tasks = SupervisedTasks()
    started = [tasks.start("unstable", unstable.run), tasks.start("forever", wait_forever)]
    await async_wait_until(lambda: unstable.num_runs == 1, "the first crash")
    await tasks.aclose()
    assert was_cancelled
    assert all(task.cancelled() for task in started)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not report who cancelled a task")
async def test_the_cancellation_of_something_that_a_task_awaits_is_a_crash() -> None:
    crashes: list[str] = []
    unstable = Unstable(1, asyncio.CancelledError())
    async with aclosing(SupervisedTasks(crashes.append)) as tasks:
        await asyncio.wait({tasks.start("poll", unstable.run)})
    assert (unstable.num_runs, crashes) == (2, ["poll"])
