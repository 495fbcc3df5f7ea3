"""What lasts too long is told to the second, however often it began and ended before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from llava_server.generation.idle_timer import Patience


class HandTurnedLoop(asyncio.SelectorEventLoop):
    """Its clock goes on when it is told to."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.call_soon(self.stop)
        self.run_forever()

    def patience(self, seconds: float, told: list[float]) -> Patience:
        async def made() -> Patience:
            return Patience(seconds, lambda: told.append(self.now))

        return self.run_until_complete(made())


@pytest.fixture
def loop() -> Iterator[HandTurnedLoop]:
    loop = HandTurnedLoop()
    yield loop
    loop.close()


def test_what_lasts_too_long_is_told_again_and_again(loop: HandTurnedLoop) -> None:
    told: list[float] = []
    patience = loop.patience(10, told)
    patience.begin()
    for _ in range(35):
        loop.turn(1)
    assert told == [1010, 1020, 1030]


def test_what_ends_in_time_is_never_told(loop: HandTurnedLoop) -> None:
    told: list[float] = []
    patience = loop.patience(10, told)
    for _ in range(20):
        patience.begin()
        loop.turn(9)
        patience.end()
        loop.turn(9)
    assert told == []


def test_time_counts_from_the_last_beginning(loop: HandTurnedLoop) -> None:
    told: list[float] = []
    patience = loop.patience(10, told)
    for _ in range(3):
        patience.begin()
        loop.turn(7)
    for _ in range(6):
        loop.turn(1)
    assert told == [1024]


@pytest.mark.parametrize("is_begun", [True, False])
def test_nothing_is_told_and_no_timer_left_after_closing(loop: HandTurnedLoop, is_begun: bool) -> None:
    told: list[float] = []
    patience = loop.patience(10, told)
    if is_begun:
        patience.begin()
    patience.close()
    loop.turn(100)
    assert told == []
    assert not any(not handle.cancelled() for handle in loop._scheduled)  # type: ignore[attr-defined]
