"""How long something may last that begins and ends with every token."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["Patience"]


class Patience:
    """Calls ``on_end`` each time that what has begun lasts ``seconds`` more.

    Beginning and ending cost an assignment each: one timer looks after all of them and sets itself anew where
    it came too soon. Who has begun must ``close`` it.
    """

    def __init__(self, seconds: float, on_end: Callable[[], None]) -> None:
        """``on_end`` runs in the event loop and must not raise."""
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._on_end = on_end
        self._since = math.inf  # the loop's time; infinite while nothing goes on
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        self._since = math.inf

    def close(self) -> None:
        """Nothing goes on any more."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._since == math.inf:
            return
        if self._since + self._seconds <= (now := self._loop.time()):
            self._since = now
            self._on_end()
        self._timer = self._loop.call_at(self._since + self._seconds, self._look)
