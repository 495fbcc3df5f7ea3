"""Middleware that normalizes the slashes in paths, before authentication and routing compare the path.

A base URL with a trailing slash makes some clients send paths such as ``//v1/models`` or ``/v1//models``, and
other clients append a slash to each path. These paths are served directly, because many clients do not follow
a redirect of a POST request or drop its body.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["PathMiddleware", "normalize"]

_SLASHES = re.compile("/{2,}")


class PathMiddleware:
    """Middleware that merges consecutive slashes and removes a trailing slash from the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = normalize(scope["path"])
        return await self._app(scope, receive, send)


def normalize(path: str) -> str:
    """Return the path without consecutive slashes and without a trailing slash. The root remains "/"."""
    merged = _SLASHES.sub("/", path)
    return merged[:-1] if merged.endswith("/") and len(merged) > 1 else merged
