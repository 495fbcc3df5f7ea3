"""What a tenant has asked for in the last minute, counted once for all controllers, by Redis's own clock."""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.redis.connection import Link, try_briefly
from llava_wire.stores.api_keys import KeyLimits

__all__ = ["Allowance", "RateLimitStore"]


@dataclass(frozen=True)
class Allowance:
    """What a charge left. ``wait_s`` is when it would be granted, 0 if it was."""

    requests_left: int
    tokens_left: int
    wait_s: float

    @property
    def is_granted(self) -> bool:
        return self.wait_s == 0


class RateLimitStore:
    """The minute of each tenant. Every call raises QueueUnavailable if Redis does not answer.

    A charge whose answer was lost is sent again and may count twice: never in the tenant's favour, and gone
    after a minute.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        self._link = Link(url, timeout_s=timeout_s, max_connections=16)

    async def charge(
        self, tenant: str, limits: KeyLimits, *, requests: int = 0, tokens: int = 0
    ) -> Allowance:
        """Take both from the tenant's minute, or neither."""
        return await self._call(tenant, limits, requests, tokens, 0)

    async def settle(self, tenant: str, limits: KeyLimits, *, tokens: int) -> Allowance:
        """Correct an earlier estimate by ``tokens``: more than was thought, or less if negative."""
        return await self._call(tenant, limits, 0, tokens, 1)

    async def aclose(self) -> None:
        await self._link.aclose()

    async def _call(
        self, tenant: str, limits: KeyLimits, requests: int, tokens: int, settles: int
    ) -> Allowance:
        per_minute = (limits.requests_per_min or 0, limits.tokens_per_min or 0)
        args = (tenant, *per_minute, requests, tokens, settles)
        requests_left, tokens_left, wait_ms = await try_briefly(lambda: self._link.script("charge", *args))
        return Allowance(int(requests_left), int(tokens_left), wait_ms / 1000)
