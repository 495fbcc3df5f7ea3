"""Refreshing a copy of data in Redis, periodically and for requests that the copy is too old for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["SharedRefresh"]

_MIN_INTERVAL_S = 0.25  # between refreshes for requests, so that they cannot overload Redis


class SharedRefresh:
    """Calls ``refresh`` for many requests at once. It must be used in one event loop."""

    def __init__(self, refresh: Callable[[], Awaitable[None]]) -> None:
        self._refresh = refresh
        self._began_at = float("-inf")  # time.monotonic() of the latest refresh
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Refresh now."""
        self._began_at = time.monotonic()
        await self._refresh()

    async def run_after(self, requested_at: float) -> None:
        """Wait for a refresh that began after a request arrived (``time.monotonic()``).

        What was written to Redis before the request arrived is then in the copy.
        """
        async with self._lock:
            if self._began_at <= requested_at:
                await asyncio.sleep(max(0.0, self._began_at + _MIN_INTERVAL_S - time.monotonic()))
                await self.run()
