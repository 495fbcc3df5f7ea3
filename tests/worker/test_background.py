"""Functions run in threads with low priority."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest
from llava_worker.background import run_in_background

pytestmark = pytest.mark.anyio


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
async def test_only_the_background_thread_has_low_priority() -> None:
    before = niceness()
    assert await run_in_background(niceness) == min(19, before + 10)
    assert await asyncio.to_thread(niceness) == niceness() == before


async def test_errors_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_in_background(lambda: 1 // 0)


async def test_a_function_that_has_started_is_not_cancelled() -> None:
    has_started, may_end = threading.Event(), threading.Event()

    def wait() -> bool:
        has_started.set()
        return may_end.wait(60)

    future = run_in_background(wait)
    waiter = asyncio.ensure_future(asyncio.shield(future))
    assert await asyncio.to_thread(has_started.wait, 60)
    waiter.cancel()
    may_end.set()
    assert await future
