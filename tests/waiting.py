"""Wait for conditions, with timeouts scaled to the machine's speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from tests.machine_speed import scaled

T = TypeVar("T")
_POLL_S = 0.005


def wait_until(condition: Callable[[], T | None], what: str = "", *, timeout_s: float = 30.0) -> T:
    """Poll ``condition`` and return its first true value. Raises AssertionError after the scaled timeout."""
    deadline = time.monotonic() + scaled(timeout_s)
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {scaled(timeout_s):.0f} s for {what or 'the condition'}"
        time.sleep(_POLL_S)
    return value


async def async_wait_until(
    condition: Callable[[], T | None], what: str = "", *, timeout_s: float = 30.0
) -> T:
    """Like ``wait_until``, but for use in an event loop."""
    deadline = time.monotonic() + scaled(timeout_s)
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {scaled(timeout_s):.0f} s for {what or 'the condition'}"
        await asyncio.sleep(_POLL_S)
    return value
