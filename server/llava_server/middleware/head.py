"""Middleware that handles HEAD requests as GET requests without the body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_server.request_context import context_of

__all__ = ["HeadMiddleware"]


class HeadMiddleware:
    """Middleware that sends the status and headers of the GET response, and then ends the response.

    POST routes respond with 405, so a HEAD request never starts generation. The route of a stored response
    does not read its output for a HEAD request, because this would disconnect the client that is reading it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        context_of(scope).is_head = True
        is_sent = False

        async def send_head(message: Message) -> None:
            nonlocal is_sent
            if message["type"] == "http.response.start" and not is_sent:
                is_sent = True
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        get_scope = {**scope, "method": "GET"}
        try:
            await self._app(get_scope, receive, send_head)
        finally:
            if "route" in get_scope:
                scope["route"] = get_scope["route"]  # for the log and for traces
