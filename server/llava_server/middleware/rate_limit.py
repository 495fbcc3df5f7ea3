"""Limits on the number of requests and tokens per minute for each API key, and the ``x-ratelimit-*`` headers.

A request is charged before its body is read. Its tokens are charged when its job is submitted, using the same
estimate as fair queueing. When the job ends, the estimate is replaced with the number of tokens used.
"""

from __future__ import annotations

import math

from llava_wire.errors import QueueUnavailable
from llava_wire.stores.api_keys import KeyLimits
from llava_wire.stores.rate_limits import RateLimitStatus, RateLimitStore
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_server.errors import ApiError, from_wire_error
from llava_server.middleware.auth import ApiKeys, is_public
from llava_server.middleware.server_error import send_error
from llava_server.request_context import context_of

__all__ = ["RateLimitMiddleware", "RateLimiter"]


class RateLimiter:
    """A rate limiter that uses a store shared by all servers.

    Requests from tenants without limits do not access Redis.
    """

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._store: RateLimitStore | None = None
        self._allowances: dict[str, RateLimitStatus] = {}  # latest status of each tenant with limits

    def attach(self, store: RateLimitStore) -> None:
        """Set the store. Must be called before any tenant with limits is charged."""
        self._store = store

    def limits(self, tenant: str) -> KeyLimits:
        """Return all limits of the tenant."""
        return self._keys.limits(tenant)

    async def charge_request(self, tenant: str) -> None:
        """Charge one request. Raises ApiError: 429 if the limit is exceeded, 503 if Redis is unavailable."""
        limits = self.limits(tenant)
        if limits.requests_per_min or limits.tokens_per_min:
            await self._charge(tenant, limits, requests=1)

    async def charge_tokens(self, tenant: str, num_tokens: float) -> None:
        """Charge an estimated number of tokens. Raises the same errors as ``charge_request``."""
        limits = self.limits(tenant)
        if limits.tokens_per_min:
            await self._charge(tenant, limits, tokens=math.ceil(num_tokens))

    async def reconcile_tokens(self, tenant: str, *, estimated: float, used: int) -> None:
        """Replace an estimate charged by ``charge_tokens`` with the number of tokens used.

        If Redis is unavailable, the estimate is not corrected.
        """
        limits = self.limits(tenant)
        if limits.tokens_per_min and self._store is not None:
            try:
                tokens = used - math.ceil(estimated)
                self._allowances[tenant] = await self._store.adjust(tenant, limits, tokens=tokens)
            except QueueUnavailable:
                return

    def headers(self, tenant: str) -> dict[str, str]:
        """Return OpenAI's ``x-ratelimit-*`` headers as of the last charge.

        Empty if the tenant has no limits.
        """
        limits, allowance = self.limits(tenant), self._allowances.get(tenant)
        headers: dict[str, str] = {}
        if allowance is None:
            return headers
        for name, limit, remaining in (
            ("requests", limits.requests_per_min, allowance.remaining_requests),
            ("tokens", limits.tokens_per_min, allowance.remaining_tokens),
        ):
            if limit:
                headers[f"x-ratelimit-limit-{name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(remaining, 0))
                headers[f"x-ratelimit-reset-{name}"] = _duration((limit - remaining) * 60 / limit)
        return headers

    async def _charge(self, tenant: str, limits: KeyLimits, *, requests: int = 0, tokens: int = 0) -> None:
        if self._store is None:
            raise RuntimeError("A request was charged before the app started.")
        try:
            allowance = await self._store.charge(tenant, limits, requests=requests, tokens=tokens)
        except QueueUnavailable as error:
            raise from_wire_error(error) from error
        self._allowances[tenant] = allowance
        if not allowance.is_allowed:
            limit = f"{limits.tokens_per_min} tokens" if tokens else f"{limits.requests_per_min} requests"
            raise ApiError(
                "rate_limit_exceeded",
                f"This API key has reached its limit of {limit} per minute. "
                f"Retry in {allowance.wait_s:.1f} seconds.",
                retry_after_s=allowance.wait_s,
            )


class RateLimitMiddleware:
    """Middleware that charges requests and adds rate limit headers. Runs after AuthMiddleware.

    All requests are charged, with any method, except those to public paths.
    """

    def __init__(self, app: ASGIApp, *, limiter: RateLimiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_public(scope["path"]):
            return await self._app(scope, receive, send)
        tenant = context_of(scope).tenant

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._limiter.headers(tenant))
            await send(message)

        try:
            await self._limiter.charge_request(tenant)
        except ApiError as error:
            return await send_error(scope, send_with_limits, error)
        return await self._app(scope, receive, send_with_limits)


def _duration(seconds: float) -> str:
    """Format a duration as OpenAI does, for example 350ms, 6s or 1m30s."""
    if seconds < 1:
        return f"{math.ceil(max(seconds, 0) * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
