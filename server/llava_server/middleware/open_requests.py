"""The number of open requests and the size of their data in memory, in total and for each API key.

The data consists of the bodies, and of stored data that the requests load from Redis.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from llava_wire.stores.api_keys import KeyLimits

from llava_server.errors import ApiError

__all__ = ["RETRY_AFTER_S", "OpenRequests", "RequestBudget"]

RETRY_AFTER_S = 1.0
_MIB = 2**20


@dataclass(frozen=True)
class RequestBudget:
    """Limits on open requests and on the total size of their bodies and loaded data in memory.

    The totals apply to POST requests. The limits for one tenant apply to requests with any method, and a key
    can have other ones (see ``KeyLimits``). A tenant without an own limit may have at most as many requests
    as are left, so that n tenants leave 1/(n + 1) of them to others, unless ``max_tenant_requests`` is not
    lower than ``max_requests``.
    """

    max_requests: int
    max_bytes: int
    max_tenant_requests: int
    max_tenant_bytes: int


class OpenRequests:
    """The open requests of a server. The caller counts them, and then checks the limits."""

    def __init__(self, budget: RequestBudget) -> None:
        self._budget = budget
        self.num_posts = 0
        self._num_bytes = 0
        self._tenant_requests: Counter[str] = Counter()
        self._tenant_bytes: Counter[str] = Counter()
        self._loaded_bytes: Counter[str] = Counter()  # the part of _tenant_bytes that is not in bodies
        self.num_released_bytes = 0
        self.released = asyncio.Event()  # set and replaced when bytes are released

    def count(self, tenant: str, change: int, *, is_post: bool) -> None:
        """Add (+1) or remove (-1) a request."""
        self.num_posts += change if is_post else 0
        _add(self._tenant_requests, tenant, change)

    def count_bytes(self, tenant: str, change: int) -> None:
        """Add or remove bytes of a request body."""
        self._num_bytes += change
        _add(self._tenant_bytes, tenant, change)
        if change < 0:
            self.num_released_bytes -= change
            self.released.set()
            self.released = asyncio.Event()

    def count_loaded(self, tenant: str, change: int) -> None:
        """Add or remove bytes of loaded data."""
        _add(self._loaded_bytes, tenant, change)
        self.count_bytes(tenant, change)

    def loading_error(self, tenant: str, limits: KeyLimits, num_bytes: int) -> ApiError | None:
        """Return the error (429 or 503) for a request that would load too many bytes, or None.

        A tenant that has loaded nothing may always load data, so that it can read everything that it has
        stored.
        """
        max_bytes = self._max_tenant_bytes(limits)
        if not self._loaded_bytes[tenant]:
            del self._loaded_bytes[tenant]
            return None
        if self._tenant_bytes[tenant] + num_bytes > max_bytes:
            return ApiError(
                "rate_limit_exceeded",
                "The stored data that this API key is reading, and its request bodies, exceed the limit of "
                f"{max_bytes} bytes in total. Wait for a request to finish.",
                retry_after_s=RETRY_AFTER_S,
            )
        if self._num_bytes + num_bytes > self._budget.max_bytes:
            return ApiError(
                "overloaded",
                "The server is reading too much stored data for other requests. Its total size, with that of "
                f"uploads, exceeds the limit of {self._budget.max_bytes} bytes. Retry later.",
                retry_after_s=RETRY_AFTER_S,
            )
        return None

    def is_full(self) -> bool:
        """Return whether there are more POST requests than allowed."""
        return self.num_posts > self._budget.max_requests

    def is_tenant_full(self, tenant: str, limits: KeyLimits) -> bool:
        """Return whether the tenant has more requests than allowed."""
        return self._tenant_requests[tenant] > self._max_tenant_requests(limits)

    def full_error(self) -> ApiError:
        """Return the error for a request above the limit on all POST requests."""
        max_requests = self._budget.max_requests
        return ApiError(
            "overloaded",
            f"The server has reached its limit of {max_requests} open requests. Retry later.",
            retry_after_s=RETRY_AFTER_S,
        )

    def tenant_full_error(self, limits: KeyLimits) -> ApiError:
        """Return the error for a request above the tenant's limit."""
        max_requests = self._max_tenant_requests(limits)
        return ApiError(
            "rate_limit_exceeded",
            f"This API key has reached its limit of {max_requests} open requests. Wait for one to finish.",
            retry_after_s=RETRY_AFTER_S,
        )

    def check_body(self, limits: KeyLimits, num_bytes: int) -> None:
        """Raise ApiError (413) if a single body is larger than the tenant's bodies may be in total."""
        max_bytes = self._max_tenant_bytes(limits)
        if num_bytes > max_bytes:
            raise ApiError(
                "request_too_large",
                f"The request body exceeds this API key's limit of {max_bytes} bytes for all of its request "
                "bodies. Send less text, or smaller images or files.",
            )

    def check_bytes(self, tenant: str, limits: KeyLimits) -> None:
        """Raise ApiError if the bodies in memory are larger than allowed: 429 or 503."""
        max_bytes = self._max_tenant_bytes(limits)
        if self._tenant_bytes[tenant] > max_bytes:
            raise ApiError(
                "rate_limit_exceeded",
                f"The request bodies that this API key is sending exceed the limit of {max_bytes} bytes in "
                "total. Wait for a request to finish.",
                retry_after_s=RETRY_AFTER_S,
            )
        max_bytes = self._budget.max_bytes
        if self._num_bytes > max_bytes:
            raise ApiError(
                "overloaded",
                "The server has too many concurrent uploads. Their total size exceeds the limit of "
                f"{max_bytes} bytes. Retry later.",
                retry_after_s=RETRY_AFTER_S,
            )

    def _max_tenant_requests(self, limits: KeyLimits) -> int:
        budget = self._budget
        if limits.max_open_requests is not None:
            return limits.max_open_requests
        if budget.max_tenant_requests >= budget.max_requests:
            return budget.max_tenant_requests
        num_left = budget.max_requests - self.num_posts + 1  # the request that is checked has been counted
        return min(budget.max_tenant_requests, max(1, num_left))

    def _max_tenant_bytes(self, limits: KeyLimits) -> int:
        own_mb = limits.max_inflight_body_mb
        return self._budget.max_tenant_bytes if own_mb is None else own_mb * _MIB


def _add(counter: Counter[str], tenant: str, change: int) -> None:
    counter[tenant] += change
    if not counter[tenant]:
        del counter[tenant]
