"""The order to leave: from SIGTERM on, readiness is 503, open answers finish, and then the process goes."""

from __future__ import annotations

import time

__all__ = ["Drain"]


class Drain:
    """Whether this process is leaving, and how far it is. Once begun there is no way back."""

    def __init__(self, *, grace_s: float, timeout_s: float) -> None:
        self._grace_s = grace_s
        self._timeout_s = timeout_s
        self._begun_at: float | None = None

    def begin(self) -> None:
        """Safe to call from a signal handler and more than once."""
        if self._begun_at is None:
            self._begun_at = time.monotonic()

    @property
    def is_draining(self) -> bool:
        return self._begun_at is not None

    @property
    def refuses_new(self) -> bool:
        """After the grace in which balancers learn of it; until then new requests are served as ever."""
        return self._elapsed() >= self._grace_s

    @property
    def is_timed_out(self) -> bool:
        """Whether open answers have had their time."""
        return self._elapsed() >= self._grace_s + self._timeout_s

    def _elapsed(self) -> float:
        return -1.0 if self._begun_at is None else time.monotonic() - self._begun_at
