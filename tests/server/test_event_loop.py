"""The longest stall of the event loop in the last minute is measured and exported."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_server.event_loop import RecentMaximum, measure_stalls
from llava_server.metrics import Metrics
from llava_server.supervised_tasks import SupervisedTasks

from tests.server.conftest import Stack
from tests.waiting import async_wait_until


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1))
def test_a_recent_maximum_covers_exactly_its_window(steps: list[tuple[int, int]]) -> None:
    recent, now_s, added = RecentMaximum(60), 0, []
    for interval_s, value in steps:
        now_s += interval_s
        added.append((now_s, value))
        expected = max(value for time_s, value in added if time_s >= now_s - 60)
        assert recent.add(value, now_s) == expected


def compute(cpu_s: float) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


@pytest.mark.anyio
async def test_a_callback_that_computes_is_measured_and_one_that_waits_uses_no_cpu_time() -> None:
    metrics = Metrics()

    def exported(name: str) -> float:
        return metrics.registry.get_sample_value(f"llava_event_loop_{name}_seconds") or 0.0

    async with aclosing(SupervisedTasks()) as tasks:
        tasks.start("event loop stalls", partial(measure_stalls, metrics))
        await asyncio.sleep(0)  # starts the task
        time.sleep(0.4)
        await async_wait_until(lambda: exported("stall") > 0)
        assert exported("stall") >= 0.3
        assert exported("stall_cpu") < exported("stall") / 2
        compute(0.5)
        await async_wait_until(lambda: exported("stall_cpu") > 0.4)
        assert exported("stall") > 0.4


def test_a_server_exports_its_stalls(stack: Stack) -> None:
    assert stack.works()
    text = stack.http.get("/metrics").text
    assert "\nllava_event_loop_stall_seconds " in text
    assert "\nllava_event_loop_stall_cpu_seconds " in text
