"""Exception handlers that convert exceptions from routes and the router to error responses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.parse import parameter_error
from llava_server.errors import ApiError
from llava_server.generation.disconnect import ClientDisconnected
from llava_server.matching import allowed_methods, suggested_path
from llava_server.middleware.server_error import error_response

__all__ = ["EXCEPTION_HANDLERS"]

_CLIENT_CLOSED_REQUEST = 499  # a nonstandard status code from nginx, used only in the log


async def _handle_api_error(request: Request, error: ApiError) -> Response:
    return error_response(request.scope, error)


async def _handle_router_error(request: Request, error: HTTPException) -> Response:
    """Handle the router's 404 and 405 errors. No other code raises HTTPException."""
    if error.status_code == 405:
        return _method_not_allowed(request)
    if error.status_code == 404:
        return error_response(request.scope, ApiError("unknown_url", _unknown_url(request)))
    raise error


def _method_not_allowed(request: Request) -> Response:
    """Return the response to OPTIONS, or the error for another method that the URL does not support."""
    allowed = ", ".join(allowed_methods(request))
    if request.method == "OPTIONS":
        return Response(status_code=204, headers={"allow": allowed})
    error = ApiError(
        "method_not_allowed", f"The method {request.method} is not allowed for this URL. Use {allowed}."
    )
    response = error_response(request.scope, error)
    response.headers["allow"] = allowed
    return response


def _unknown_url(request: Request) -> str:
    path = request.scope["path"]
    if path.startswith("/v1/v1/") or path == "/v1/v1":
        return (
            'The path of this URL begins with "/v1" twice. The base URL of OpenAI clients ends in /v1, and '
            "the base URL of Anthropic clients does not."
        )
    if (suggestion := suggested_path(request)) is not None:
        return (
            f"This URL does not exist. Did you mean {suggestion!a}? The base URL of OpenAI clients is "
            "http://HOST:PORT/v1."
        )
    return "This URL does not exist. See /docs for the API."


async def _handle_invalid_parameter(request: Request, error: RequestValidationError) -> Response:
    """Handle an invalid path or query parameter. Request bodies are parsed by ``api.parse`` instead."""
    return error_response(request.scope, parameter_error(error.errors()[0]))


async def _handle_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


EXCEPTION_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ApiError: _handle_api_error,
    HTTPException: _handle_router_error,
    RequestValidationError: _handle_invalid_parameter,
    ClientDisconnected: _handle_disconnect,
}
