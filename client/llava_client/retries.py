"""When a failed request is tried again, and after how long: data and arithmetic, no input or output.

What the server states wins (``x-should-retry``, ``retry-after-ms``, ``Retry-After``); otherwise the wait
doubles from try to try, with jitter, so that clients who failed together do not come back together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from llava_client.errors import APIConnectionError, APIStatusError, APITimeoutError, LlavaError

__all__ = ["RetryPolicy", "Tries"]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to wait before the next try.

    A stated delay above ``max_stated_delay_s`` is not slept: the error goes to the caller, who can decide.
    ``jitter`` is the share of a computed wait that chance may take away.
    """

    statuses: frozenset[int] = frozenset({408, 409, 429})  # and every 5xx
    initial_delay_s: float = 0.5
    max_delay_s: float = 8.0
    jitter: float = 0.25
    max_stated_delay_s: float = 120.0

    def is_retryable(self, status_code: int) -> bool:
        """Whether a later try of the same request may end otherwise."""
        return status_code in self.statuses or status_code >= 500

    def delay_s(self, num_failures: int, stated_s: float | None = None) -> float | None:
        """Seconds to wait after the ``num_failures``-th failure (1 = the first); None: do not try again."""
        if stated_s is not None:
            return stated_s if stated_s <= self.max_stated_delay_s else None
        delay_s = min(self.initial_delay_s * 2.0 ** (num_failures - 1), self.max_delay_s)
        return delay_s * (1 - self.jitter * random.random())


class Tries:
    """The tries of one call. Only failures that may pass are tried again, and never after the first event."""

    def __init__(self, policy: RetryPolicy, max_retries: int) -> None:
        self._policy = policy
        self._max_retries = max_retries
        self._num_failures = 0

    def wait_after(self, failure: LlavaError) -> float | None:
        """Seconds to wait before the next try; None: ``failure`` is final."""
        self._num_failures += 1
        if self._num_failures > self._max_retries:
            return None
        if isinstance(failure, APIStatusError):
            is_worth_it = self._policy.is_retryable(failure.status_code)
            if not (is_worth_it if failure.should_retry is None else failure.should_retry):
                return None
            return self._policy.delay_s(self._num_failures, failure.retry_after_s)
        # One silence of the whole timeout is enough: asking again would only double it.
        if isinstance(failure, APIConnectionError) and not isinstance(failure, APITimeoutError):
            return self._policy.delay_s(self._num_failures)
        return None
