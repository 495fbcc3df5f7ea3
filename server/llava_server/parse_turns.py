"""Turns in which connections parse the data that they have received.

Parsing takes CPU time of the event loop before the server knows who sent a request, and hundreds of
connections can receive data at the same time. In each iteration of the event loop, data is therefore parsed
at once for a few milliseconds only. The remaining connections wait. Their addresses take turns, so that a
client with many connections delays mostly itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

__all__ = ["ParseTurns"]

_BUDGET_S = 0.004  # per iteration of the event loop; the next one that parses begins as much later


class ParseTurns:
    """The turns of one event loop. ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: OrderedDict[Hashable, deque[Callable[[], None]]] = OrderedDict()
        self._spent_s = 0.0  # in this iteration
        self._is_scheduled = False

    def take(self, address: Hashable, parse: Callable[[], None], loop: asyncio.AbstractEventLoop) -> bool:
        """Call ``parse`` now and return True, or let it wait for a turn of its address and return False."""
        if self._waiting or self._spent_s >= _BUDGET_S:
            self._waiting.setdefault(address, deque()).append(parse)
        else:
            self._run(parse)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._begin_iteration, loop)
        return not self._waiting

    def _run(self, parse: Callable[[], None]) -> None:
        started_at = self._clock()
        try:
            parse()
        finally:
            self._spent_s += self._clock() - started_at

    def _begin_iteration(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_scheduled, self._spent_s = False, 0.0
        try:
            while self._waiting and self._spent_s < _BUDGET_S:
                self._run(self._next())
        finally:
            if self._waiting:
                self._is_scheduled = True
                loop.call_later(self._spent_s, self._begin_iteration, loop)

    def _next(self) -> Callable[[], None]:
        """Remove the next connection from the queue and return its function."""
        address, connections = next(iter(self._waiting.items()))
        parse = connections.popleft()
        if connections:
            self._waiting.move_to_end(address)
        else:
            del self._waiting[address]
        return parse
