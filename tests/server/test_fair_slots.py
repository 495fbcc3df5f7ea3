"""Slots are shared fairly between tenants, and waiting is bounded."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Coroutine
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_server.errors import ApiError
from llava_server.fair_slots import FairSlots, Slot, SlotLimits
from llava_server.fair_threads import FairThreads
from llava_server.metrics import Metrics

from tests.server.image_slots import fair_slots


class Arrival(NamedTuple):
    at_s: float
    tenant: str
    duration_s: float


class Simulation:
    """Requests that use slots for a given time, with a simulated clock.

    ``held`` lists the tenant, the begin and the end of each use of a slot, and ``waited_s`` the longest wait
    of each tenant.
    """

    def __init__(self, num_slots: int, weights: dict[str, float] | None = None, **limits: Any) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.slots = FairSlots(
            "test",
            "a test",
            SlotLimits(num_slots=num_slots, **limits),
            self.metrics,
            weight_of=lambda tenant: (weights or {}).get(tenant, 1.0),
            clock=lambda: self.now,
        )
        self.held: list[tuple[str, float, float]] = []
        self.waited_s: dict[str, float] = {}
        self._ends: list[tuple[float, int, Slot]] = []
        self._numbers = itertools.count()

    def run(self, arrivals: list[Arrival], *, until_s: float = float("inf")) -> None:
        asyncio.run(self._run(sorted(arrivals), until_s))

    def served_s(self, tenant: str, *, begin_s: float = 0.0, end_s: float = float("inf")) -> float:
        """Return the time for which the tenant held slots between two times."""
        uses = [(max(begin, begin_s), min(end, end_s)) for name, begin, end in self.held if name == tenant]
        return sum(max(0.0, end - begin) for begin, end in uses)

    async def _run(self, arrivals: list[Arrival], until_s: float) -> None:
        waiting, tasks = list(reversed(arrivals)), set()
        while (waiting or self._ends) and self.now < until_s:
            if waiting and (not self._ends or waiting[-1].at_s <= self._ends[0][0]):
                arrival = waiting.pop()
                self.now = arrival.at_s
                tasks.add(asyncio.create_task(self._use(arrival)))
            else:
                self.now, _, slot = heapq.heappop(self._ends)
                slot.release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _use(self, arrival: Arrival) -> None:
        slot = await self.slots.acquire(arrival.tenant)
        self.waited_s[arrival.tenant] = max(self.waited_s.get(arrival.tenant, 0.0), self.now - arrival.at_s)
        end_s = self.now + arrival.duration_s
        self.held.append((arrival.tenant, self.now, end_s))
        heapq.heappush(self._ends, (end_s, next(self._numbers), slot))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), num_slots=st.integers(1, 5), weight=st.sampled_from((1.0, 2.0, 3.0)))
def test_tenants_that_always_wait_get_slots_in_proportion_to_their_weights(
    seed: int, num_slots: int, weight: float
) -> None:
    """The number of requests of a tenant and their duration make no difference."""
    rng = random.Random(seed)
    longest_s = {"many short": 0.05, "long": 0.4, "weighted": 0.2}
    arrivals = [
        Arrival(rng.random(), tenant, longest_s[tenant] * rng.uniform(0.5, 1.0))
        for tenant, number in (("many short", 500), ("long", 80), ("weighted", 300))
        for _ in range(number)
    ]
    simulation = Simulation(num_slots, {"weighted": weight}, has_reserve=False)
    simulation.run(arrivals, until_s=11.0)
    begin_s, end_s = 2.0, 10.0
    shares = {
        tenant: simulation.served_s(tenant, begin_s=begin_s, end_s=end_s)
        / (weight if tenant == "weighted" else 1.0)
        for tenant in longest_s
    }
    assert sum(simulation.served_s(name, begin_s=begin_s, end_s=end_s) for name in shares) == pytest.approx(
        num_slots * (end_s - begin_s)
    )
    assert max(shares.values()) - min(shares.values()) <= 2 * num_slots * max(longest_s.values())


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), num_slots=st.integers(2, 5), num_attackers=st.integers(1, 4))
def test_a_slot_remains_free_for_another_tenant_if_there_are_fewer_busy_tenants_than_slots(
    seed: int, num_slots: int, num_attackers: int
) -> None:
    """The slots that a busy tenant has received before others became busy are released first."""
    num_attackers = min(num_attackers, num_slots - 1)
    rng = random.Random(seed)
    attack = [
        Arrival(rng.uniform(0, 1), f"attacker {number}", rng.uniform(0.1, 5.0))
        for number in range(num_attackers)
        for _ in range(40)
    ]
    simulation = Simulation(num_slots)
    simulation.run([*attack, *(Arrival(7.0 + at, "victim", 0.5) for at in range(20))])
    assert simulation.waited_s["victim"] == 0.0
    assert len(simulation.held) == len(attack) + 20


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), num_slots=st.integers(1, 4), num_attackers=st.integers(1, 6))
def test_a_tenant_that_waits_behind_several_waits_for_one_use_of_a_slot_at_most(
    seed: int, num_slots: int, num_attackers: int
) -> None:
    rng = random.Random(seed)
    attack = [
        Arrival(rng.uniform(0, 10), f"attacker {rng.randrange(num_attackers)}", rng.uniform(0.1, 5.0))
        for _ in range(300)
    ]
    simulation = Simulation(num_slots)
    simulation.run([*attack, *(Arrival(30.0 * at, "victim", 0.1) for at in range(1, 5))])
    assert simulation.waited_s["victim"] <= 5.0
    assert len(simulation.held) == 304


def test_an_idle_tenant_accumulates_no_credit() -> None:
    """After a tenant has been idle, it gets its share, and not the time that it has missed."""
    busy = [Arrival(0.0, "busy", 1.0) for _ in range(300)]
    returning = [Arrival(100.0, "returning", 1.0) for _ in range(300)]
    simulation = Simulation(1)
    simulation.run([Arrival(0.0, "returning", 1.0), *busy, *returning], until_s=150.0)
    served = [simulation.served_s(name, begin_s=101.0, end_s=149.0) for name in ("busy", "returning")]
    assert served == [pytest.approx(24.0, abs=1.0)] * 2


def test_requests_of_one_tenant_are_served_in_order_and_use_half_of_the_slots() -> None:
    simulation = Simulation(4)
    simulation.run([Arrival(number / 100, "only", 1.0 + number) for number in range(20)])
    durations = [end - begin for _, begin, end in simulation.held]
    assert durations == pytest.approx([1.0 + number for number in range(20)])
    begins = [begin for _, begin, _ in simulation.held]
    ends = sorted(end for _, _, end in simulation.held)
    assert begins[2:] == pytest.approx(ends[:-2])  # two at a time, without gaps


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_more_waiting_requests_of_a_tenant_than_the_limit_are_rejected_and_others_are_not() -> None:
    async def check() -> None:
        slots = fair_slots(1, max_waiting=2)
        await slots.acquire("a")
        waiting = [asyncio.create_task(slots.acquire("a")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="limit of 2 requests that wait for a test") as caught:
            await slots.acquire("a")
        assert (caught.value.kind.status, caught.value.code) == (429, "rate_limit_exceeded")
        assert caught.value.retry_after_s
        other = asyncio.create_task(slots.acquire("b"))
        await asyncio.sleep(0)
        assert not other.done()
        for task in (*waiting, other):
            task.cancel()

    run(check())


def test_a_request_that_waits_longer_than_the_limit_fails_and_does_not_get_a_slot() -> None:
    async def check() -> None:
        slots = fair_slots(1, timeout_s=0.01)
        slot = await slots.acquire("a")
        with pytest.raises(ApiError, match=r"waited for a test for 0\.01 seconds") as caught:
            await slots.acquire("b")
        assert (caught.value.kind.status, caught.value.code) == (503, "overloaded")
        assert caught.value.retry_after_s
        slot.release()
        (await slots.acquire("c")).release()

    run(check())


@pytest.mark.parametrize("is_released", [False, True])
def test_a_request_that_is_cancelled_while_it_waits_leaves_the_slot_to_others(is_released: bool) -> None:
    """In one of the cases, the request has already received the slot when it is cancelled."""

    async def check() -> None:
        slots = fair_slots(1)
        slot = await slots.acquire("a")
        cancelled = [asyncio.create_task(slots.acquire("b")) for _ in range(3)]
        last = asyncio.create_task(slots.acquire("c"))
        await asyncio.sleep(0)
        if is_released:
            slot.release()
        for task in cancelled:
            task.cancel()
        slot.release()
        slot.release()  # has no effect
        (await last).release()
        assert all(task.cancelled() for task in cancelled)
        (await slots.acquire("b")).release()

    run(check())


def test_an_exception_during_the_use_of_a_slot_releases_it() -> None:
    async def check() -> None:
        slots = fair_slots(1)
        for _ in range(3):
            with pytest.raises(ValueError, match="defect"):
                async with slots.hold("a"):
                    raise ValueError("defect")

    run(check())


def test_waits_and_rejections_are_counted_by_stage() -> None:
    async def check() -> None:
        metrics = Metrics()
        limits = SlotLimits(num_slots=1, max_waiting=1, timeout_s=0.01)
        slots = FairSlots("threads", "parsing", limits, metrics)
        async with slots.hold("a"):
            waiting = asyncio.create_task(slots.acquire("a"))
            await asyncio.sleep(0)
            for task in (slots.acquire("a"), waiting):
                with pytest.raises(ApiError):
                    await task
        sample = metrics.registry.get_sample_value
        assert sample("llava_stage_wait_seconds_count", {"stage": "threads"}) == 1
        for reason in ("tenant_limit", "timeout"):
            labels = {"stage": "threads", "reason": reason}
            assert sample("llava_stage_rejections_total", labels) == 1

    run(check())


def test_a_cancelled_call_holds_its_thread_until_it_returns() -> None:
    """A thread cannot be interrupted, so the calls of a tenant that disconnects still count."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        threads = FairThreads(fair_slots(1))
        begun, may_end = asyncio.Event(), asyncio.Event()

        def work() -> None:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result()

        first = asyncio.create_task(threads.run("a", work))
        await begun.wait()
        first.cancel()
        second = asyncio.create_task(threads.run("b", lambda: "result"))
        await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert (first.cancelled(), second.done()) == (True, False)
        may_end.set()
        assert await second == "result"
        threads.close()

    run(check())


async def duration_until_free(held_s: float) -> float:
    """Hold the only slot, let it rest, and return how long another request then waits."""
    now = 0.0
    slots = FairSlots("test", "a test", SlotLimits(num_slots=1), Metrics(), clock=lambda: now)
    slot = await slots.acquire("a")
    now = held_s
    slot.rest()
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    (await slots.acquire("b")).release()
    return loop.time() - start_s


def test_a_slot_rests_as_long_as_it_was_held_if_this_was_long() -> None:
    assert asyncio.run(duration_until_free(held_s=0.2)) >= 0.19
    assert asyncio.run(duration_until_free(held_s=0.001)) < 0.19
    assert 0.24 <= asyncio.run(duration_until_free(held_s=3600.0)) < 3600
