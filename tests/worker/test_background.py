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


async def test_a_cancelled_caller_does_not_wait_for_the_thread() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def wait() -> None:
        may_end.wait()
        has_ended.set()

    task = asyncio.create_task(run_in_background(wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not has_ended.is_set()
    may_end.set()
    assert await asyncio.to_thread(has_ended.wait, 60)
