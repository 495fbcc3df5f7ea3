"""Runs functions with low priority, so that they hardly delay the engine."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from llava_worker.cpu_priority import lower_priority

__all__ = ["run_in_background"]

_T = TypeVar("_T")


def run_in_background(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """Call a function in a new thread with low CPU priority. The process does not exit before it returns."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="background", initializer=_lower_priority)
    future = asyncio.get_running_loop().run_in_executor(executor, function)
    executor.shutdown(wait=False)  # the thread exits after the call
    return future


def _lower_priority() -> None:
    if sys.platform == "linux":  # on other systems, threads have no priority of their own
        with suppress(OSError):  # forbidden, for example by a sandbox
            lower_priority(threading.get_native_id())
