"""Decides whether to retry a failed request and how long to wait before retrying it.

Does no I/O. Callers are responsible for waiting.

The response headers ``x-should-retry``, ``retry-after-ms`` and ``Retry-After`` take precedence. If the server
does not request a delay, the delay doubles with each retry. Jitter prevents clients whose requests failed at
the same time from all retrying at once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from llava_client.errors import APIConnectionError, APIStatusError, APITimeoutError, LlavaError

__all__ = ["RetryPolicy", "RetryState"]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The status codes that are retried and the delays between retries.

    If the server requests a delay longer than ``max_stated_delay_s``, the request is not retried. ``jitter``
    is the maximum fraction by which a computed delay is randomly shortened.
    """

    statuses: frozenset[int] = frozenset({408, 409, 429})  # in addition to 5xx
    initial_delay_s: float = 0.5
    max_delay_s: float = 8.0
    jitter: float = 0.25
    max_stated_delay_s: float = 120.0

    def is_retryable(self, status_code: int) -> bool:
        """Whether a request that failed with this status code may succeed if it is retried."""
        return status_code in self.statuses or status_code >= 500

    def delay_s(self, num_failures: int, stated_s: float | None = None) -> float | None:
        """Return the delay before the next retry, or None if ``stated_s`` is too long.

        ``stated_s`` is the delay that the server requested, if any.
        """
        if stated_s is not None:
            return stated_s if stated_s <= self.max_stated_delay_s else None
        delay_s = min(self.initial_delay_s * 2.0 ** (num_failures - 1), self.max_delay_s)
        return delay_s * (1 - self.jitter * random.random())


class RetryState:
    """The retry state for one request. Only failures that may be temporary are retried."""

    def __init__(self, policy: RetryPolicy, max_retries: int) -> None:
        self._policy = policy
        self._max_retries = max_retries
        self._num_failures = 0

    def next_delay_s(self, failure: LlavaError) -> float | None:
        """Return the delay in seconds before the next retry, or None if the request must not be retried."""
        self._num_failures += 1
        if self._num_failures > self._max_retries:
            return None
        if isinstance(failure, APIStatusError):
            is_retryable = self._policy.is_retryable(failure.status_code)
            if not (is_retryable if failure.should_retry is None else failure.should_retry):
                return None
            return self._policy.delay_s(self._num_failures, failure.retry_after_s)
        # Timeouts are not retried, because a retry could double the time that the caller waits.
        if isinstance(failure, APIConnectionError) and not isinstance(failure, APITimeoutError):
            return self._policy.delay_s(self._num_failures)
        return None
