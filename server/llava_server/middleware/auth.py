"""Authentication: an API key identifies a tenant. Only this part of the server has access to the keys.

All paths except the public paths listed here require a key, so a new route is protected by default. Paths are
compared in the form that the router uses. Keys come from the settings and from a store in Redis. This process
caches the store's keys and continues to accept them while Redis is unavailable.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from functools import partial

from llava_wire.errors import QueueUnavailable
from llava_wire.messages.job import HIGHEST_PRIORITY, LOWEST_PRIORITY
from llava_wire.stores.api_keys import ApiKeyStore, KeyLimits
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.client_address import client_of
from llava_server.errors import ApiError, queue_unavailable
from llava_server.middleware.server_error import send_error
from llava_server.middleware.turns import Turns
from llava_server.request_context import context_of
from llava_server.shared_refresh import SharedRefresh

__all__ = ["ANONYMOUS", "ApiKeys", "AuthMiddleware", "is_public", "key_digest", "tenant_of"]

logger = logging.getLogger(__name__)

ANONYMOUS = "anonymous"  # the tenant of requests without a key
_PUBLIC_PATHS = frozenset(
    {"/", "/livez", "/readyz", "/health", "/ping", "/version", "/docs", "/openapi.json"}
)
_PUBLIC_FOLDER = "/playground/"  # static files; the page prompts the user for the key
_TENANT_HEX_DIGITS = 16
_RETRY_AFTER_S = 5.0
_NO_LIMITS = KeyLimits()


def key_digest(key: str) -> str:
    """Return the SHA-256 digest of a key. Keys are stored only in this form."""
    return hashlib.sha256(key.encode()).hexdigest()


def tenant_of(digest: str) -> str:
    """Return the tenant's name, a prefix of the digest.

    Neither the digest nor the key can be derived from this name.
    """
    return digest[:_TENANT_HEX_DIGITS]


class ApiKeys:
    """The valid API keys, as SHA-256 digests, and their limits."""

    def __init__(self, keys: Iterable[str], *, is_required: bool) -> None:
        self.is_required = is_required
        self._from_settings = frozenset(key_digest(key) for key in keys)
        self._store: ApiKeyStore | None = None
        self._store_version = ""
        self._from_store: frozenset[str] = frozenset()
        self._limits: dict[str, KeyLimits] = {}  # keyed by tenant
        self._is_store_unavailable = False
        self._refreshing = SharedRefresh(self._read_store)

    @property
    def num_keys(self) -> int:
        return len(self._from_settings | self._from_store)

    def attach(self, store: ApiKeyStore) -> None:
        """Also accept the keys in this store. ``refresh`` must then be called every few seconds."""
        self._store = store

    def limits(self, tenant: str) -> KeyLimits:
        """Return the tenant's limits. Keys from the settings have the default limits."""
        return self._limits.get(tenant, _NO_LIMITS)

    def priority(self, tenant: str, requested: int | None = None) -> int:
        """Return the priority of a request: the requested one, limited to the maximum of its key.

        If the request does not select a priority, it has the maximum.
        """
        maximum = self.limits(tenant).priority
        priority = maximum if requested is None else min(requested, maximum)
        return min(max(priority, LOWEST_PRIORITY), HIGHEST_PRIORITY)

    def is_active(self, tenant: str) -> bool:
        """Return whether the tenant still has a valid key.

        Background work, such as a batch, calls this to detect that the key has been revoked.
        """
        digests = self._from_settings | self._from_store
        return not self.is_required or any(tenant_of(digest) == tenant for digest in digests)

    async def find_tenant(self, key: str) -> str | None:
        """Return the tenant of the key, or None if the key is unknown.

        Raises ApiError (503) if the key is not cached and the store is unavailable.
        """
        digest = key_digest(key)
        if not self._is_known(digest) and self._store is not None:
            await self._refreshing.run_after_now()  # the key may have just been created
        if self._is_known(digest):
            return tenant_of(digest)
        if self._is_store_unavailable:  # the key may be valid, and a client does not retry after a 401
            raise queue_unavailable(_RETRY_AFTER_S)
        return None

    async def refresh(self) -> None:
        """Read the store. If Redis is unavailable, keep the cached keys and log one warning."""
        await self._refreshing.run()

    async def _read_store(self) -> None:
        if self._store is None:
            return
        try:
            changes = await self._store.read(self._store_version)
        except QueueUnavailable as error:
            if not self._is_store_unavailable:
                logger.warning("API keys cannot be refreshed; cached keys remain valid: %s", error)
            self._is_store_unavailable = True
            return
        self._is_store_unavailable = False
        if changes is not None:
            self._store_version, keys = changes
            self._from_store = frozenset(key.digest for key in keys)
            self._limits = {tenant_of(key.digest): key.limits for key in keys}

    def _is_known(self, digest: str) -> bool:
        # The lookup does not need to be constant-time, because attackers cannot choose the digest of a key.
        return digest in self._from_settings or digest in self._from_store


class AuthMiddleware:
    """Middleware that stores the tenant in the request context, or responds with 401.

    Requests continue, or are rejected, in turns that tenants share fairly.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys, turns: Turns) -> None:
        self._app = app
        self._keys = keys
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        tenant, rejection = ANONYMOUS, None
        has_public_path = is_public(scope["path"])
        if self._keys.is_required and not has_public_path:
            try:
                tenant = await self._authenticate(Headers(scope=scope))
            except ApiError as error:
                rejection = error
        context = context_of(scope)
        # Health checks do not wait for floods of requests without a valid key, or from other addresses.
        turn_of = f"public {client_of(scope.get('client'))}" if has_public_path else tenant
        context.take_turn = partial(self._turns.take, turn_of)
        context.tenant = tenant
        if not await context.wait_for_turn():
            return None
        if rejection is not None:
            return await send_error(scope, send, rejection)
        return await self._app(scope, receive, send)

    async def _authenticate(self, headers: Headers) -> str:
        """Return the tenant. Raises ApiError (401, 503)."""
        keys = _keys_in(headers)
        if len(keys) > 1:
            raise ApiError(
                "invalid_api_key",
                "The headers Authorization and x-api-key contain different API keys. Send only one of them.",
            )
        tenant = await self._keys.find_tenant(keys.pop()) if keys else None
        if tenant is None:
            raise ApiError(
                "invalid_api_key",
                "A valid API key is required. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            )
        return tenant


def is_public(path: str) -> bool:
    """Return whether the path can be accessed without a key."""
    return path in _PUBLIC_PATHS or (path.startswith(_PUBLIC_FOLDER) and ".." not in path)


def _keys_in(headers: Headers) -> set[str]:
    """Return the keys in a request.

    OpenAI clients send a bearer token, and Anthropic clients send ``x-api-key``.
    """
    keys = {key.strip() for key in headers.getlist("x-api-key")}
    for authorization in headers.getlist("authorization"):
        scheme, _, key = authorization.partition(" ")
        keys.add(key.strip() if scheme.lower() == "bearer" else "")
    return keys - {""}
