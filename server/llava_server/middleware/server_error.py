"""Error responses, and the middleware that converts unhandled exceptions to them."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_server.error_response import (
    Error,
    MessageError,
    OllamaError,
    to_error,
    to_message_error,
    to_ollama_error,
)
from llava_server.errors import ApiError, error_headers
from llava_server.request_context import context_of
from llava_server.response_model import JSONResponse

__all__ = ["ServerErrorMiddleware", "error_response", "send_error", "uses_anthropic_format"]

logger = logging.getLogger(__name__)

# prefixes of paths whose errors never use OpenAI's format
_ANTHROPIC_PATHS = "/v1/messages"
_OLLAMA_PATHS = "/api/"


def error_response(scope: Scope, error: ApiError) -> Response:
    """Record the error in the request context and return its response."""
    context = context_of(scope)
    context.record_error(error)
    body: Error | MessageError | OllamaError
    if scope["path"].startswith(_OLLAMA_PATHS):
        body = to_ollama_error(error, context.request_id)
    elif uses_anthropic_format(scope):
        body = to_message_error(error, context.request_id)
    else:
        body = to_error(error, context.request_id)
    return JSONResponse(body, error.kind.status, error_headers(error))


def uses_anthropic_format(scope: Scope) -> bool:
    """Return whether the response to this request has Anthropic's format.

    Anthropic clients send the header ``anthropic-version`` with every request.
    """
    return scope["path"].startswith(_ANTHROPIC_PATHS) or "anthropic-version" in Headers(scope=scope)


async def send_error(scope: Scope, send: Send, error: ApiError) -> None:
    """Send a complete error response from a middleware."""

    async def no_body() -> Message:
        return {"type": "http.disconnect"}

    await error_response(scope, error)(scope, no_body, send)


class ServerErrorMiddleware:
    """Middleware that logs unhandled exceptions and responds with status 500 and the request ID."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_response_started = False

        async def watched_send(message: Message) -> None:
            nonlocal is_response_started
            is_response_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ApiError as error:
            if is_response_started:
                raise
            await send_error(scope, send, error)
        except Exception:
            if is_response_started:
                raise  # too late for an error response: the HTTP server closes the connection
            request_id = context_of(scope).request_id
            logger.exception("unhandled exception, request_id=%s", request_id)
            message = (
                f"Internal server error. The server's log contains the traceback for request {request_id}."
            )
            await send_error(scope, send, ApiError("internal_error", message))
