"""Requests and tokens a minute of each API key, and the headers that tell a client where it stands.

A request is counted at the door, before its body is read; its tokens when its job is submitted, by the same
estimate that fair queueing uses, and corrected when it ends by what it really took.
"""

from __future__ import annotations

import math

from llava_wire.errors import QueueUnavailable
from llava_wire.stores.api_keys import KeyLimits
from llava_wire.stores.rate_limits import Allowance, RateLimitStore
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.middleware.auth import ApiKeys
from llava_server.middleware.request_id import send_error

__all__ = ["RateLimiter", "RateLimits"]


class RateLimiter:
    """Asks for a tenant's minute, which all controllers share. Tenants without such limits cost nothing."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._windows: RateLimitStore | None = None
        self._seen: dict[str, Allowance] = {}  # by tenant; only of those with limits

    def attach(self, windows: RateLimitStore) -> None:
        """From now on limits are kept."""
        self._windows = windows

    def limits(self, tenant: str) -> KeyLimits:
        """All that the tenant may do."""
        return self._keys.limits(tenant)

    async def take_request(self, tenant: str) -> None:
        """Raises ApiError: 429 over the limit, 503 if nobody can tell."""
        limits = self.limits(tenant)
        if limits.requests_per_min or limits.tokens_per_min:
            await self._take(tenant, limits, requests=1)

    async def take_tokens(self, tenant: str, num_tokens: float) -> None:
        """Raises like ``take_request``."""
        limits = self.limits(tenant)
        if limits.tokens_per_min:
            await self._take(tenant, limits, tokens=math.ceil(num_tokens))

    async def settle(self, tenant: str, *, estimated: float, used: int) -> None:
        """Correct what ``take_tokens`` took. Without a queue to ask, the minute's end corrects it."""
        limits = self.limits(tenant)
        if limits.tokens_per_min and self._windows is not None:
            try:
                tokens = used - math.ceil(estimated)
                self._seen[tenant] = await self._windows.settle(tenant, limits, tokens=tokens)
            except QueueUnavailable:
                return

    def headers(self, tenant: str) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-*``, as of the tenant's latest charge here; none without limits."""
        limits, seen = self.limits(tenant), self._seen.get(tenant)
        headers: dict[str, str] = {}
        if seen is None:
            return headers
        for name, limit, left in (
            ("requests", limits.requests_per_min, seen.requests_left),
            ("tokens", limits.tokens_per_min, seen.tokens_left),
        ):
            if limit:
                headers[f"x-ratelimit-limit-{name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(left, 0))
                headers[f"x-ratelimit-reset-{name}"] = _duration((limit - left) * 60 / limit)
        return headers

    async def _take(self, tenant: str, limits: KeyLimits, *, requests: int = 0, tokens: int = 0) -> None:
        if self._windows is None:
            raise RuntimeError("a request came before the app had started")
        try:
            seen = await self._windows.charge(tenant, limits, requests=requests, tokens=tokens)
        except QueueUnavailable as error:
            raise ApiError(
                "queue_unavailable", "the job queue cannot be reached", retry_after_s=error.retry_after_s
            ) from error
        self._seen[tenant] = seen
        if not seen.is_granted:
            what = f"{limits.tokens_per_min} tokens" if tokens else f"{limits.requests_per_min} requests"
            raise ApiError(
                "rate_limit_exceeded",
                f"this key may use {what} a minute, and has: come again in {seen.wait_s:.1f} s",
                retry_after_s=seen.wait_s,
            )


class RateLimits:
    """Middleware behind Authentication: counts each POST and puts the headers on its answer."""

    def __init__(self, app: ASGIApp, *, limiter: RateLimiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        tenant = scope["state"]["tenant"]

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._limiter.headers(tenant))
            await send(message)

        try:
            await self._limiter.take_request(tenant)
        except ApiError as error:
            return await send_error(scope, send_with_limits, error)
        return await self._app(scope, receive, send_with_limits)


def _duration(seconds: float) -> str:
    """As OpenAI writes them: 350ms, 6s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(max(seconds, 0) * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
