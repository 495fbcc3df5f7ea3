"""Graceful shutdown after SIGTERM.

``/readyz`` returns 503, in-flight requests finish, and then the process exits.
"""

from __future__ import annotations

import asyncio
import time

__all__ = ["GracefulShutdown"]

_POLL_S = 0.1


class GracefulShutdown:
    """The shutdown state of this process. Once a shutdown has begun, it cannot be stopped."""

    def __init__(self, *, grace_s: float, timeout_s: float) -> None:
        self._grace_s = grace_s
        self._timeout_s = timeout_s
        self._begun_at: float | None = None

    def begin(self) -> None:
        """Start the shutdown. Can be called repeatedly, from any thread and from signal handlers."""
        if self._begun_at is None:
            self._begun_at = time.monotonic()

    async def wait_begun(self) -> None:
        """Wait until the shutdown has begun. Polls, because a signal handler cannot wake a task."""
        while not self.is_draining:
            await asyncio.sleep(_POLL_S)

    @property
    def is_draining(self) -> bool:
        return self._begun_at is not None

    @property
    def rejects_requests(self) -> bool:
        """Whether new requests are rejected because the grace period for load balancers has ended."""
        return self._elapsed() >= self._grace_s

    @property
    def is_timed_out(self) -> bool:
        """Whether the drain timeout for in-flight requests has expired."""
        return self._elapsed() >= self._grace_s + self._timeout_s

    def _elapsed(self) -> float:
        return -1.0 if self._begun_at is None else time.monotonic() - self._begun_at
