"""Middleware that rejects requests from web pages of other origins where no API key protects the server.

Any website can make a visitor's browser send requests to a local server. CORS only prevents that the website
reads the responses. Requests that need no preflight, such as forms and uploads, would still be processed.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.middleware.server_error import send_error

__all__ = ["OriginMiddleware"]

_MAX_QUOTED = 100  # maximum number of characters that an error message quotes from a header


class OriginMiddleware:
    """Middleware that responds with 403 to foreign requests, before their bodies are read.

    Browsers report the origin of a page in ``Origin`` or ``Sec-Fetch-Site``. Other clients send neither, so
    the middleware does not affect them. Preflight requests are left to CORS. If ``origins`` is empty, only
    the server's own pages are allowed.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str], remedy: str) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._remedy = remedy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or not self._is_foreign(scope):
            return await self._app(scope, receive, send)
        origin = ", ".join(Headers(scope=scope).getlist("origin"))[:_MAX_QUOTED] or "unknown"
        remedy = self._remedy
        error = ApiError(
            "origin_not_allowed",
            f"Requests from web pages of other origins (here {origin!a}) are not allowed. {remedy}",
        )
        return await send_error(scope, send, error)

    def _is_foreign(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origins = headers.getlist("origin")
        if origins and self._origins.issuperset(origin.lower() for origin in origins):
            return False
        if site := headers.get("sec-fetch-site"):
            # The browser has compared the origins. Its result is right even if a proxy changes Host.
            is_link = not origins and scope["method"] in ("GET", "HEAD") and _is_navigation(headers)
            return site not in ("same-origin", "none") and not is_link
        return any(not _is_own(origin, headers.get("host", "")) for origin in origins)


def _is_navigation(headers: Headers) -> bool:
    """Return whether the response will be displayed in a tab, where the page with the link cannot read it."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _is_own(origin: str, host: str) -> bool:
    """Return whether an origin is this server's. A proxy may add TLS, so both schemes are allowed."""
    scheme, _, authority = origin.lower().partition("://")
    return scheme in ("http", "https") and authority == host.lower()
