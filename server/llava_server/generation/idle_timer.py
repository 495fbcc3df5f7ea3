"""A timeout that is cheap enough to start and stop for every token."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["IdleTimer"]


class IdleTimer:
    """A timer that calls ``on_timeout`` every ``seconds`` seconds while it is running.

    Starting or stopping the timer only sets a timestamp. A single event-loop timer checks the timestamp and
    is rescheduled if it fires too early. Call ``close`` when the timer is no longer needed.
    """

    def __init__(self, seconds: float, on_timeout: Callable[[], None]) -> None:
        """Create a stopped timer. ``on_timeout`` is called in the event loop and must not raise."""
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._on_timeout = on_timeout
        self._started_at = math.inf  # event loop time; infinity while stopped
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start or restart the timer."""
        self._started_at = self._loop.time()
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._check)

    def stop(self) -> None:
        self._started_at = math.inf

    def close(self) -> None:
        """Stop the timer and cancel its event-loop timer."""
        self.stop()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _check(self) -> None:
        self._handle = None
        if self._started_at == math.inf:
            return
        if self._started_at + self._seconds <= (now := self._loop.time()):
            self._started_at = now
            self._on_timeout()
        self._handle = self._loop.call_at(self._started_at + self._seconds, self._check)
