"""Runs functions with low priority, so that they hardly delay the engine."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llava_worker.cpu_priority import lower_priority

__all__ = ["run_in_background"]

_T = TypeVar("_T")


async def run_in_background(function: Callable[[], _T]) -> _T:
    """Return the result of a function, which runs in a new thread with low CPU priority.

    If the caller is cancelled, the thread continues. The process does not exit before it has finished.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="background", initializer=_lower_priority)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, function)
    finally:
        executor.shutdown(wait=False)


def _lower_priority() -> None:
    if sys.platform == "linux":  # on other systems, threads have no priority of their own
        lower_priority(threading.get_native_id())
