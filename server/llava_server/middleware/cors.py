"""Cross-origin resource sharing (CORS): web pages of the configured origins may call the API from a browser.

Credentials are never allowed, so browsers do not send cookies. Pages send the API key in a header instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from llava_server.middleware.hosts import is_loopback

__all__ = ["ANY_ORIGIN", "check_cors_access", "check_origin", "cors_middleware"]

ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_METHODS = ("GET", "HEAD", "POST", "DELETE")
_PREFLIGHT_S = 600  # how long a browser may cache the response to a preflight request


def cors_middleware(origins: Collection[str], *, exposed_headers: Collection[str]) -> list[Middleware]:
    """Return the middleware that handles preflight requests and adds CORS headers to all responses.

    The list is empty if there are no origins.

    It must run before authentication, because browsers send preflight requests without an API key and pages
    can only read an error that has CORS headers. Any request header is allowed.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=tuple(origins),
            allow_methods=_METHODS,
            allow_headers=("*",),
            allow_private_network=True,  # the origins are trusted, and the server may be in a private network
            expose_headers=tuple(exposed_headers),
            max_age=_PREFLIGHT_S,
        )
    ]


def check_origin(origin: str) -> str:
    """Return an origin in the form that browsers send. Raises ValueError."""
    normalized = origin.lower().removesuffix("/")
    if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(normalized):
        raise ValueError(
            f"{origin!r} is not an origin such as https://app.example.com or http://localhost:3000"
        )
    return normalized


def check_cors_access(origins: Collection[str], *, host: str, has_auth: bool) -> None:
    """Check that CORS does not give web pages access to a server without authentication. Raises ValueError.

    Without authentication, a page in a user's browser could use any server that this browser can reach.
    Exact origins on a loopback address are accepted, because only the pages that the operator listed can then
    use the server.
    """
    if ANY_ORIGIN in origins and len(origins) > 1:
        raise ValueError(
            "LLAVA_CORS_ORIGINS / --cors-origins contains * and other origins. Use either * or exact origins."
        )
    if has_auth or not origins:
        return
    if not is_loopback(host):
        raise ValueError(
            f"LLAVA_CORS_ORIGINS / --cors-origins requires authentication, because {host} is not a loopback "
            "address. Set LLAVA_AUTH=true, or listen on 127.0.0.1."
        )
    if ANY_ORIGIN in origins:
        raise ValueError(
            "LLAVA_CORS_ORIGINS / --cors-origins is * without authentication, so any website could use this "
            "server. List the exact origins, or set LLAVA_AUTH=true."
        )
