"""Requests and tokens of a tenant per minute, counted once for all controllers, by Redis's own clock."""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.redis.connection import Link, retry_briefly
from llava_wire.stores.api_keys import KeyLimits

__all__ = ["RateLimitStatus", "RateLimitStore"]


@dataclass(frozen=True)
class RateLimitStatus:
    """What is left after a charge. ``wait_s`` is when it would be allowed, 0 if it was."""

    remaining_requests: int
    remaining_tokens: int
    wait_s: float

    @property
    def is_allowed(self) -> bool:
        return self.wait_s == 0


class RateLimitStore:
    """A token bucket per tenant and unit. Every call raises QueueUnavailable if Redis does not answer.

    A charge whose reply was lost is sent again and may count twice: never in the tenant's favour, and made up
    for after a minute.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        self._link = Link(url, timeout_s=timeout_s, max_connections=16)

    async def charge(
        self, tenant: str, limits: KeyLimits, *, requests: int = 0, tokens: int = 0
    ) -> RateLimitStatus:
        """Take both from the tenant's buckets, or neither."""
        return await self._call(tenant, limits, requests, tokens, is_adjustment=False)

    async def adjust(self, tenant: str, limits: KeyLimits, *, tokens: int) -> RateLimitStatus:
        """Correct an estimate that was charged: by more tokens, or by less if ``tokens`` is negative."""
        return await self._call(tenant, limits, 0, tokens, is_adjustment=True)

    async def aclose(self) -> None:
        await self._link.aclose()

    async def _call(
        self, tenant: str, limits: KeyLimits, requests: int, tokens: int, *, is_adjustment: bool
    ) -> RateLimitStatus:
        per_minute = (limits.requests_per_min or 0, limits.tokens_per_min or 0)
        args = (tenant, *per_minute, requests, tokens, int(is_adjustment))
        reply = await retry_briefly(lambda: self._link.script("rate_limit", *args))
        requests_left, tokens_left, wait_ms = reply
        return RateLimitStatus(int(requests_left), int(tokens_left), wait_ms / 1000)
