"""Who asks: an API key becomes a tenant. Nothing else in the server ever sees a key.

Every path needs a key except the listed public ones, decided on the path that the router itself uses; a
route that somebody adds later is closed until it is listed here. Keys come from the settings and from the
ring in Redis, of which this process has a copy; without the ring the copy goes on being true.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterable

from llava_wire.errors import QueueUnavailable
from llava_wire.stores.api_keys import ApiKeyStore, KeyLimits
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.middleware.request_id import send_error

__all__ = ["ANONYMOUS", "ApiKeys", "Authentication", "is_public", "key_digest", "keys_in", "tenant_of"]

logger = logging.getLogger(__name__)

ANONYMOUS = "anonymous"
_PUBLIC_PATHS = frozenset({"/", "/livez", "/readyz", "/docs", "/openapi.json"})
_PUBLIC_FOLDER = "/playground/"  # static files; the page itself asks for the key
_TENANT_HEX = 16
_EAGER_S = 0.25  # an unknown key may look at the ring again so often: it may be new
_NO_LIMITS = KeyLimits()


def key_digest(key: str) -> str:
    """The only form in which a key is kept."""
    return hashlib.sha256(key.encode()).hexdigest()


def tenant_of(digest: str) -> str:
    """The name that a key's holder has inside: too short to find the digest, let alone the key."""
    return digest[:_TENANT_HEX]


class ApiKeys:
    """The known keys, as SHA-256 only, and what each may do."""

    def __init__(self, keys: Iterable[str], *, are_asked: bool) -> None:
        self.are_asked = are_asked
        self._fixed = frozenset(key_digest(key) for key in keys)
        self._ring: ApiKeyStore | None = None
        self._ring_version = ""
        self._on_ring: frozenset[str] = frozenset()
        self._limits: dict[str, KeyLimits] = {}  # by tenant
        self._looked_at = float("-inf")  # monotonic
        self._is_ring_lost = False
        self._looking = asyncio.Lock()

    @property
    def num_keys(self) -> int:
        return len(self._fixed | self._on_ring)

    def attach(self, ring: ApiKeyStore) -> None:
        """From now on the keys in Redis count too; call ``refresh`` every few seconds."""
        self._ring = ring

    def limits(self, tenant: str) -> KeyLimits:
        """What the tenant may do; nothing of its own is limited for keys from the settings."""
        return self._limits.get(tenant, _NO_LIMITS)

    def may_ask(self, tenant: str) -> bool:
        """Whether there is (still) a key of this tenant: for work that goes on without its asker."""
        return not self.are_asked or any(tenant_of(key) == tenant for key in self._fixed | self._on_ring)

    async def tenant(self, key: str) -> str | None:
        """The tenant behind a key, or None."""
        digest = key_digest(key)
        if not self._knows(digest):
            async with self._looking:  # whoever comes meanwhile waits for the same look
                if not self._knows(digest) and time.monotonic() - self._looked_at > _EAGER_S:
                    await self.refresh()
        return tenant_of(digest) if self._knows(digest) else None

    async def refresh(self) -> None:
        """One look at the ring. A Redis that does not answer changes nothing and is logged once."""
        if self._ring is None:
            return
        self._looked_at = time.monotonic()
        try:
            news = await self._ring.read(self._ring_version)
        except QueueUnavailable as error:
            if not self._is_ring_lost:
                logger.warning("API keys cannot be looked up, those known so far are kept: %s", error)
            self._is_ring_lost = True
            return
        self._is_ring_lost = False
        if news is not None:
            self._ring_version, keys = news
            self._on_ring = frozenset(key.digest for key in keys)
            self._limits = {tenant_of(key.digest): key.limits for key in keys}

    def _knows(self, digest: str) -> bool:
        # Found by hash: whoever can choose digests that nearly match has the key already.
        return digest in self._fixed or digest in self._on_ring


class Authentication:
    """Middleware: puts ``tenant`` into the request's state or answers 401."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        tenant: str | None = ANONYMOUS
        if self._keys.are_asked and not is_public(scope["path"]):
            try:
                tenant = await self._asking(Headers(scope=scope))
            except ApiError as error:
                return await send_error(scope, send, error)
        scope.setdefault("state", {})["tenant"] = tenant
        return await self._app(scope, receive, send)

    async def _asking(self, headers: Headers) -> str:
        """The tenant who sent them. Raises ApiError (401)."""
        keys = keys_in(headers)
        if len(keys) > 1:
            raise ApiError(
                "invalid_api_key",
                "the headers Authorization and x-api-key hold different keys: send one of them, or the same",
            )
        tenant = await self._keys.tenant(keys.pop()) if keys else None
        if tenant is None:
            raise ApiError(
                "invalid_api_key",
                "a valid API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            )
        return tenant


def keys_in(headers: Headers) -> set[str]:
    """The keys that a request brings: OpenAI's clients send a bearer, Anthropic's x-api-key."""
    keys = {key.strip() for key in headers.getlist("x-api-key")}
    for authorization in headers.getlist("authorization"):
        scheme, _, key = authorization.partition(" ")
        keys.add(key.strip() if scheme.lower() == "bearer" else "")
    return keys - {""}


def is_public(path: str) -> bool:
    """Whether the path needs no key."""
    return path in _PUBLIC_PATHS or (path.startswith(_PUBLIC_FOLDER) and ".." not in path)
