"""Routes for the API reference: GET /docs and GET /openapi.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.openapi.page import render_page
from llava_server.api.openapi.schema import Schema
from llava_server.static_file import StaticFile

__all__ = ["reference_router"]


class Reference:
    """The OpenAPI document and its page.

    Both are encoded only once, because clients without an API key can request them.
    """

    def __init__(self, get_document: Callable[[], Schema]) -> None:
        self._get_document = get_document

    @cached_property
    def page(self) -> StaticFile:
        return StaticFile.of(render_page(self._get_document()).encode(), "text/html; charset=utf-8")

    @cached_property
    def document(self) -> StaticFile:
        return StaticFile.of(
            json.dumps(self._get_document(), ensure_ascii=False).encode(), "application/json"
        )


def reference_router(get_document: Callable[[], Schema]) -> APIRouter:
    """Return a router for the reference of an API. ``get_document`` returns the API's OpenAPI document."""
    router = APIRouter(include_in_schema=False)
    reference = Reference(get_document)

    # These are not coroutines, so FastAPI calls them in a thread: building the document takes 0.2 s.
    @router.get("/docs", response_model=None)
    def docs(request: Request) -> Response:
        return reference.page.response(request)

    @router.get("/openapi.json", response_model=None)
    def openapi(request: Request) -> Response:
        return reference.document.response(request)

    return router
