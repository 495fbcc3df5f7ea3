"""IdleTimer calls its callback at the right times, even if the timer is started and stopped many times."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from llava_server.generation.idle_timer import IdleTimer


class ManualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when ``advance`` is called."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.call_soon(self.stop)
        self.run_forever()

    def make_timer(self, seconds: float, timeouts: list[float]) -> IdleTimer:
        """Return a timer that appends the time of each timeout to ``timeouts``."""

        async def make() -> IdleTimer:
            return IdleTimer(seconds, lambda: timeouts.append(self.now))

        return self.run_until_complete(make())

    def has_timers(self) -> bool:
        scheduled: list[asyncio.TimerHandle] = vars(self)["_scheduled"]
        return any(not handle.cancelled() for handle in scheduled)


@pytest.fixture
def loop() -> Iterator[ManualClockLoop]:
    loop = ManualClockLoop()
    yield loop
    loop.close()


def test_a_running_timer_fires_at_each_interval(loop: ManualClockLoop) -> None:
    timeouts: list[float] = []
    timer = loop.make_timer(10, timeouts)
    timer.start()
    for _ in range(35):
        loop.advance(1)
    assert timeouts == [1010, 1020, 1030]


def test_a_timer_stopped_in_time_never_fires(loop: ManualClockLoop) -> None:
    timeouts: list[float] = []
    timer = loop.make_timer(10, timeouts)
    for _ in range(20):
        timer.start()
        loop.advance(9)
        timer.stop()
        loop.advance(9)
    assert timeouts == []


def test_the_timeout_is_measured_from_the_last_start(loop: ManualClockLoop) -> None:
    timeouts: list[float] = []
    timer = loop.make_timer(10, timeouts)
    for _ in range(3):
        timer.start()
        loop.advance(7)
    for _ in range(6):
        loop.advance(1)
    assert timeouts == [1024]


@pytest.mark.parametrize("is_started", [True, False])
def test_a_closed_timer_never_fires_and_leaves_no_timer_in_the_loop(
    loop: ManualClockLoop, is_started: bool
) -> None:
    timeouts: list[float] = []
    timer = loop.make_timer(10, timeouts)
    if is_started:
        timer.start()
    timer.close()
    loop.advance(100)
    assert timeouts == []
    assert not loop.has_timers()
