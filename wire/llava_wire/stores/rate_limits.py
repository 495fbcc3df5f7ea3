"""Request and token rate limits per tenant, shared by all controllers and based on the Redis clock."""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.redis.connection import Link, retry_briefly
from llava_wire.redis.link_owner import LinkOwner
from llava_wire.stores.api_keys import KeyLimits

__all__ = ["RateLimitStatus", "RateLimitStore"]


@dataclass(frozen=True)
class RateLimitStatus:
    """The result of a charge. ``wait_s`` is the time until the charge can succeed, or 0 if it succeeded."""

    remaining_requests: int
    remaining_tokens: int
    wait_s: float

    @property
    def is_allowed(self) -> bool:
        return self.wait_s == 0


class RateLimitStore(LinkOwner):
    """The token buckets of all tenants. All methods raise QueueUnavailable if Redis is unavailable.

    If the reply to a charge is lost, the charge is repeated and may count twice. A bucket recovers from such
    a double charge within one minute.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        super().__init__(Link(url, timeout_s=timeout_s, max_connections=16))

    async def charge(
        self, tenant: str, limits: KeyLimits, *, requests: int = 0, tokens: int = 0
    ) -> RateLimitStatus:
        """Charge the tenant's buckets, or charge neither of them if one of them is too low."""
        return await self._call(tenant, limits, requests, tokens, is_adjustment=False)

    async def adjust(self, tenant: str, limits: KeyLimits, *, tokens: int) -> RateLimitStatus:
        """Adjust an earlier, estimated charge by ``tokens``. A negative number is a refund."""
        return await self._call(tenant, limits, 0, tokens, is_adjustment=True)

    async def _call(
        self, tenant: str, limits: KeyLimits, requests: int, tokens: int, *, is_adjustment: bool
    ) -> RateLimitStatus:
        per_minute = (limits.requests_per_min or 0, limits.tokens_per_min or 0)
        args = (tenant, *per_minute, requests, tokens, int(is_adjustment))
        reply = await retry_briefly(lambda: self._link.script("rate_limit", *args))
        requests_left, tokens_left, wait_ms = reply
        return RateLimitStatus(int(requests_left), int(tokens_left), wait_ms / 1000)
