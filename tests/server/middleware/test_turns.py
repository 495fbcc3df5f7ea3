"""Requests take turns in the event loop, which API keys share fairly."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
from llava_server.metrics import Metrics
from llava_server.middleware.turns import Turns
from llava_server.request_context import RequestContext

pytestmark = pytest.mark.anyio

FAST, SLOW = "fast", "slow"


@pytest.fixture
def turns() -> Turns:
    return Turns(Metrics(), lambda _tenant: 1.0)


async def run(turns: Turns, tenants: list[str], *, slow_s: float = 0.0) -> list[str]:
    """Take one turn for each tenant. Return the tenants in the order of their turns.

    A turn of ``SLOW`` computes for ``slow_s`` seconds.
    """
    order = []

    async def take(tenant: str) -> None:
        await turns.take(tenant)
        order.append(tenant)
        end_s = time.monotonic() + slow_s * (tenant == SLOW)
        while time.monotonic() < end_s:
            pass

    await asyncio.gather(*map(take, tenants))
    return order


async def test_a_request_of_another_key_waits_for_few_requests_of_a_flood(turns: Turns) -> None:
    order = await run(turns, [*["flood"] * 500, "late"])
    assert order.index("late") <= 2
    assert len(order) == 501


async def test_requests_of_one_key_take_their_turns_in_the_order_of_arrival(turns: Turns) -> None:
    order = []

    async def take(number: int) -> None:
        await turns.take("key")
        order.append(number)

    await asyncio.gather(*map(take, range(100)))
    assert order == list(range(100))


async def test_a_key_with_expensive_requests_takes_fewer_turns(turns: Turns) -> None:
    order = await run(turns, [SLOW, FAST] * 50, slow_s=0.005)
    last = len(order) - 1 - order[::-1].index(FAST)
    assert order[:last].count(SLOW) < 25  # 50 if each key took every second turn


async def test_only_one_turn_begins_in_each_iteration_of_the_event_loop(turns: Turns) -> None:
    iteration, begun = 0, []

    def count() -> None:
        nonlocal iteration
        iteration += 1
        loop.call_soon(count)

    async def take() -> None:
        await turns.take("key")
        begun.append(iteration)

    loop = asyncio.get_running_loop()
    loop.call_soon(count)
    await asyncio.gather(*(take() for _ in range(50)))
    assert len(set(begun)) == 50


async def test_a_cancelled_request_gives_up_its_turn(turns: Turns) -> None:
    waiting = [asyncio.ensure_future(turns.take("key")) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.wait_for(turns.take("other"), 10)


async def test_a_request_whose_client_disconnects_while_it_waits_gives_up_its_turn(turns: Turns) -> None:
    contexts = [RequestContext("id", 0.0, Metrics()) for _ in range(3)]
    for context in contexts:
        context.take_turn = partial(turns.take, "key")
    waiting = [asyncio.ensure_future(context.wait_for_turn()) for context in contexts]
    await asyncio.sleep(0)
    contexts[1].abandon()
    assert await asyncio.gather(*waiting) == [True, False, True]


async def test_a_request_that_is_cancelled_while_it_waits_ends(turns: Turns) -> None:
    context = RequestContext("id", 0.0, Metrics())
    context.take_turn = partial(turns.take, "key")
    blocking = asyncio.ensure_future(turns.take("other"))
    waiting = asyncio.ensure_future(context.wait_for_turn())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await blocking
