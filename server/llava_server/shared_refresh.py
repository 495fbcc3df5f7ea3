"""Refreshing a copy of data in Redis, periodically and for requests that the copy is too old for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["SharedRefresh"]

# Refreshes must not overload Redis: their interval is 10 times as long as one takes, within limits.
_MIN_INTERVAL_S, _INTERVAL_PER_DURATION = 0.05, 10.0
_MAX_INTERVAL_S = 1.0


class SharedRefresh:
    """Calls ``refresh`` for many requests at once. It must be used in one event loop."""

    def __init__(self, refresh: Callable[[], Awaitable[None]]) -> None:
        self._refresh = refresh
        self._began_at = float("-inf")  # time.monotonic() of the latest refresh
        self._interval_s = _MIN_INTERVAL_S
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Refresh now."""
        async with self._lock:
            await self._run()

    async def run_after_now(self) -> None:
        """Wait for a refresh that begins after this call, and that may serve other callers, too.

        What was written to Redis before the call is then in the copy.
        """
        called_at = time.monotonic()
        async with self._lock:
            if self._began_at <= called_at:
                await asyncio.sleep(max(0.0, self._began_at + self._interval_s - time.monotonic()))
                await self._run()

    async def _run(self) -> None:
        self._began_at = began_at = time.monotonic()
        await self._refresh()
        duration_s = time.monotonic() - began_at
        self._interval_s = min(max(_MIN_INTERVAL_S, _INTERVAL_PER_DURATION * duration_s), _MAX_INTERVAL_S)
