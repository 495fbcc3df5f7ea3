"""The base class of all response bodies, chunks and events.

Routes and serializers create and encode ResponseModel objects; ``api/openapi/document.py`` generates the
OpenAPI document from the same classes. Optional fields default to UNSET.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = [
    "AlwaysFalse",
    "AlwaysTrue",
    "Count",
    "EncodedResponse",
    "JSONResponse",
    "ResponseModel",
    "Timestamp",
    "doc",
]

_PIECE_BYTES = 1 << 18
_MAX_TIMESTAMP = 253_402_300_799  # the last second of the year 9999

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
AlwaysTrue = Annotated[bool, Meta(extra_json_schema={"const": True})]
AlwaysFalse = Annotated[bool, Meta(extra_json_schema={"const": False})]
Timestamp = Annotated[int, Meta(ge=0, le=_MAX_TIMESTAMP)]  # Unix seconds


class ResponseModel(msgspec.Struct):
    """Base class for response bodies and their parts."""


class EncodedResponse(Response):
    """A response whose body is encoded JSON.

    The body is sent in pieces, because the server buffers a whole piece for a client that does not read.
    """

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        num_bytes = len(self.body)
        for begin in range(0, max(1, num_bytes), _PIECE_BYTES):
            end = begin + _PIECE_BYTES
            piece = self.body[begin:end]
            await send({"type": "http.response.body", "body": piece, "more_body": end < num_bytes})


class JSONResponse(Response):
    """A response whose body is a small ResponseModel. ``encode_in_pieces`` encodes large ones."""

    media_type = "application/json"

    def render(self, content: ResponseModel) -> bytes:
        return msgspec.json.encode(content)


def doc(description: str, *examples: Any, **bounds: Any) -> Meta:
    """Return the description, examples and bounds of a field for the OpenAPI document."""
    return Meta(description=description, examples=list(examples) or None, **bounds)
