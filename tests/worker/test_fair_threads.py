"""Threads are shared fairly: the calls of one tenant delay those of another by at most one call."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from llava_worker.fair_threads import FairThreads

from tests.machine_speed import scaled
from tests.waiting import async_wait_until

pytestmark = pytest.mark.anyio


class Calls:
    """Calls that return once ``release`` is set. ``started`` lists their names in order."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.release = threading.Event()

    def blocked(self, name: str) -> Callable[[], str]:
        def call() -> str:
            self.started.append(name)
            assert self.release.wait(scaled(30))
            return name

        return call


@pytest.fixture
def calls() -> Iterator[Calls]:
    calls = Calls()
    yield calls
    calls.release.set()


def submit(threads: FairThreads, calls: Calls, tenant: str, name: str) -> asyncio.Task[str]:
    return asyncio.create_task(threads.run(tenant, calls.blocked(name)))


async def test_calls_of_another_tenant_run_while_all_calls_of_one_tenant_are_blocked(calls: Calls) -> None:
    threads = FairThreads(2, "test")
    blocked = [submit(threads, calls, "slow", f"slow {number}") for number in range(10)]
    await async_wait_until(lambda: calls.started)
    for number in range(3):
        assert await threads.run("other", partial(abs, number)) == number
    assert calls.started == ["slow 0"]
    calls.release.set()
    assert await asyncio.gather(*blocked) == [f"slow {number}" for number in range(10)]
    threads.close()


async def test_another_tenant_waits_for_one_call_if_all_threads_are_busy(calls: Calls) -> None:
    threads = FairThreads(1, "test")
    blocked = [submit(threads, calls, "slow", f"slow {number}") for number in range(5)]
    await async_wait_until(lambda: calls.started)
    other = submit(threads, calls, "other", "other")
    await asyncio.sleep(0)  # the call is queued
    calls.release.set()
    await asyncio.gather(*blocked, other)
    assert calls.started[:2] == ["slow 0", "other"]
    assert calls.started[2:] == [f"slow {number}" for number in range(1, 5)]  # in order of arrival
    threads.close()


async def test_a_tenant_that_was_idle_takes_turns_with_a_tenant_that_was_busy(calls: Calls) -> None:
    now = 0.0
    threads = FairThreads(1, "test", clock=lambda: now)
    order: list[str] = []

    def call(tenant: str) -> None:
        nonlocal now
        order.append(tenant)
        now += 1.0

    def run(tenant: str) -> asyncio.Task[None]:
        return asyncio.create_task(threads.run(tenant, lambda: call(tenant)))

    earlier = [run("busy") for _ in range(5)]
    last = submit(threads, calls, "busy", "last")
    await async_wait_until(lambda: calls.started)
    order.clear()
    late = [run(tenant) for tenant in ("busy", "busy", "busy", "idle", "idle", "idle")]
    await asyncio.sleep(0)  # the calls are queued
    calls.release.set()
    await asyncio.gather(*earlier, last, *late)
    assert [order[:2].count("idle"), order[:4].count("idle")] == [1, 2]
    threads.close()


async def test_a_call_that_is_cancelled_while_it_waits_never_runs(calls: Calls) -> None:
    threads = FairThreads(2, "test")
    first = submit(threads, calls, "one", "first")
    second = submit(threads, calls, "one", "second")
    third = submit(threads, calls, "one", "third")
    await async_wait_until(lambda: calls.started)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    calls.release.set()
    assert (await first, await third) == ("first", "third")
    assert calls.started == ["first", "third"]
    threads.close()


async def test_a_cancelled_call_uses_its_thread_until_it_returns(calls: Calls) -> None:
    threads = FairThreads(1, "test")
    running, waiting = (submit(threads, calls, "one", name) for name in ("running", "waiting"))
    await async_wait_until(lambda: calls.started)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert calls.started == ["running"]
    calls.release.set()
    assert await waiting == "waiting"
    threads.close()


async def test_the_error_of_a_cancelled_call_is_ignored(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    threads = FairThreads(1, "test")

    def fail() -> None:
        calls.blocked("running")()
        raise ZeroDivisionError

    running = asyncio.create_task(threads.run("one", fail))
    await async_wait_until(lambda: calls.started)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    del running
    calls.release.set()
    assert await threads.run("one", lambda: 1) == 1
    gc.collect()
    assert not caplog.records
    threads.close()


async def test_an_error_is_raised_in_the_caller_and_frees_the_thread() -> None:
    threads = FairThreads(1, "test")
    with pytest.raises(ZeroDivisionError):
        await threads.run("one", lambda: 1 // 0)
    assert await threads.run("one", lambda: 1) == 1
    threads.close()
