"""Functions that compare a request with all routes of an app, for responses with status 204, 404 and 405."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import Request
from starlette.routing import Match

__all__ = ["allowed_methods", "suggested_path"]

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MAX_SUGGESTION = 100  # characters
_MAX_SEGMENTS = 4  # maximum number of leading path segments that are removed to find a route


def allowed_methods(request: Request, path: str | None = None) -> list[str]:
    """Return the methods of all routes that match the path, or an empty list if there is no route.

    ``path`` defaults to the path of the request. The router's own ``Allow`` header contains only the methods
    of the first matching route.
    """
    scope = {**request.scope, "path": path or request.scope["path"]}
    methods = [
        method
        for method in _METHODS
        if any(
            route.matches({**scope, "method": method})[0] is Match.FULL for route in request.app.router.routes
        )
    ]
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"] if methods else []


def suggested_path(request: Request) -> str | None:
    """Return a path of this API that the client probably meant, or None."""
    method = {"HEAD": "GET"}.get(request.method, request.method)
    for path in _candidates(request.scope["path"]):
        if len(path) <= _MAX_SUGGESTION and method in allowed_methods(request, path):
            return path
    return None


def _candidates(path: str) -> Iterator[str]:
    """Yield paths that result from a base URL with the correct ``/v1``, and without other prefixes."""
    yield f"/v1{path}"
    segments = path.split("/")[1:]
    for start in range(1, min(len(segments), _MAX_SEGMENTS + 1)):
        yield "/" + "/".join(segments[start:])
