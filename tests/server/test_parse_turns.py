"""Connections parse the data that they have received in turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from llava_server.parse_turns import ParseTurns

from tests.waiting import async_wait_until

pytestmark = pytest.mark.anyio


class Parsing:
    """Turns with a clock that only parsing advances. ``done`` contains the names of what was parsed."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turns = ParseTurns(lambda: self.now_s)
        self.done: list[str] = []

    def take(self, address: str, name: str, *, takes_s: float, error: Exception | None = None) -> bool:
        return self.turns.take(address, self._parse(name, takes_s, error), asyncio.get_running_loop())

    def _parse(self, name: str, takes_s: float, error: Exception | None) -> Callable[[], None]:
        def parse() -> None:
            self.now_s += takes_s
            self.done.append(name)
            if error:
                raise error

        return parse


async def test_data_is_parsed_at_once_until_the_budget_of_an_iteration_is_spent() -> None:
    parsing = Parsing()
    assert parsing.take("a", "1", takes_s=0.003)
    assert parsing.take("a", "2", takes_s=0.003)
    assert not parsing.take("a", "3", takes_s=0.003)
    assert not parsing.take("b", "4", takes_s=0)
    assert parsing.done == ["1", "2"]
    await async_wait_until(lambda: parsing.done == ["1", "2", "3", "4"])
    assert parsing.take("a", "5", takes_s=0)


async def test_addresses_take_turns() -> None:
    parsing = Parsing()
    parsing.take("a", "a0", takes_s=0.01)
    for number in range(1, 4):
        parsing.take("a", f"a{number}", takes_s=0.01)
    parsing.take("b", "b0", takes_s=0.01)
    await async_wait_until(lambda: len(parsing.done) == 5)
    assert parsing.done == ["a0", "a1", "b0", "a2", "a3"]


async def test_an_error_does_not_stop_the_next_turns() -> None:
    parsing, errors = Parsing(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    error = ValueError("parsing failed")
    parsing.take("a", "a0", takes_s=0.01)
    parsing.take("a", "a1", takes_s=0, error=error)
    parsing.take("a", "a2", takes_s=0)
    await async_wait_until(lambda: parsing.done == ["a0", "a1", "a2"])
    assert errors == [error]
