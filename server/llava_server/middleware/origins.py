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
    the middleware does not affect them. Preflight requests are left to CORS. ``origins`` are allowed in
    addition to the server's own origin. It is None for the admin port.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str] | None) -> None:
        self._app = app
        self._is_admin = origins is None
        self._origins = frozenset(origins or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or not self._is_foreign(scope):
            return await self._app(scope, receive, send)
        return await send_error(scope, send, self._error(Headers(scope=scope).getlist("origin")))

    def _error(self, origins: list[str]) -> ApiError:
        origin = ", ".join(origins)[:_MAX_QUOTED] or "unknown"
        if self._is_admin:
            return ApiError(
                "origin_not_allowed",
                f"The request comes from a web page of another origin ({origin!a}). The admin port does not "
                "accept such requests. Use curl or another program that is not a browser.",
            )
        return ApiError(
            "origin_not_allowed",
            f"The request comes from a web page of another origin ({origin!a}). Add the origin to "
            "LLAVA_CORS_ORIGINS / --cors-origins, or require API keys with LLAVA_AUTH=true.",
        )

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
