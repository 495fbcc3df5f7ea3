"""Who asks: an API key becomes a tenant. Nothing else in the server ever sees a key.

Every path needs a key except the listed public ones, decided on the path that the router itself uses; a
route that somebody adds later is closed until it is listed here. Without configured keys everyone is
``anonymous``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.replies import send_error

__all__ = ["ANONYMOUS", "ApiKeys", "Authentication"]

ANONYMOUS = "anonymous"
_PUBLIC_PATHS = frozenset({"/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"})
_PUBLIC_FOLDER = "/playground/"  # static files; the page itself asks for the key
_TENANT_HEX = 16


class ApiKeys:
    """The known keys, as SHA-256 only."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._digests

    def tenant(self, authorization: str | None) -> str | None:
        """The tenant behind an ``Authorization`` header, or None; takes the same time for each key."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        matches = [known for known in self._digests if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not matches:
            return None
        return matches[0].hex()[:_TENANT_HEX]


class Authentication:
    """Middleware: puts ``tenant`` into the request's state or answers 401."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        tenant: str | None = ANONYMOUS
        if not self._keys.is_open and not _is_public(scope["path"]):
            header = dict(scope["headers"]).get(b"authorization")
            tenant = self._keys.tenant(header.decode("latin-1") if header else None)
        if tenant is None:
            error = ApiError(
                "invalid_api_key", "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
            )
            return await send_error(scope, send, error)
        scope.setdefault("state", {})["tenant"] = tenant
        return await self._app(scope, receive, send)


def _is_public(path: str) -> bool:
    return path in _PUBLIC_PATHS or (path.startswith(_PUBLIC_FOLDER) and ".." not in path)
