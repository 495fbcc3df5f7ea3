"""A timeout that can be started and stopped for every token at almost no cost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["IdleTimer"]


class IdleTimer:
    """Calls ``on_timeout`` every ``seconds`` while it runs.

    Starting and stopping only assign a time. One event-loop timer checks it, and is set again when it fires
    too early. Call ``close`` in the end.
    """

    def __init__(self, seconds: float, on_timeout: Callable[[], None]) -> None:
        """``on_timeout`` is called in the event loop and must not raise."""
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._on_timeout = on_timeout
        self._started_at = math.inf  # the loop's time; infinite while stopped
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start, or start again from now."""
        self._started_at = self._loop.time()
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._check)

    def stop(self) -> None:
        self._started_at = math.inf

    def close(self) -> None:
        """Stop and cancel the event loop's timer."""
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
