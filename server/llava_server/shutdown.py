"""Graceful shutdown: after SIGTERM readiness is 503, open requests finish, then the process exits."""

from __future__ import annotations

import asyncio
import time

__all__ = ["GracefulShutdown"]

_POLL_S = 0.1


class GracefulShutdown:
    """Whether this process is shutting down, and in which phase. It cannot be revoked."""

    def __init__(self, *, grace_s: float, timeout_s: float) -> None:
        self._grace_s = grace_s
        self._timeout_s = timeout_s
        self._begun_at: float | None = None

    def begin(self) -> None:
        """Safe to call from a signal handler, from any thread and more than once."""
        if self._begun_at is None:
            self._begun_at = time.monotonic()

    async def wait_begun(self) -> None:
        """Return once the shutdown has begun. It polls: a signal handler cannot wake a task."""
        while not self.is_draining:
            await asyncio.sleep(_POLL_S)

    @property
    def is_draining(self) -> bool:
        return self._begun_at is not None

    @property
    def rejects_requests(self) -> bool:
        """Whether the grace period is over in which load balancers notice and new requests are served."""
        return self._elapsed() >= self._grace_s

    @property
    def is_timed_out(self) -> bool:
        """Whether the time for open requests is over."""
        return self._elapsed() >= self._grace_s + self._timeout_s

    def _elapsed(self) -> float:
        return -1.0 if self._begun_at is None else time.monotonic() - self._begun_at
