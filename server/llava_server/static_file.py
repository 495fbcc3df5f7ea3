"""Static files in memory, served with an ETag."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from llava_server.middleware.response_headers import PAGE_POLICY

__all__ = ["StaticFile"]

_HEADERS: Mapping[str, str] = {
    "content-security-policy": PAGE_POLICY,
    "cache-control": "no-cache",  # use the ETag to revalidate on each request
}


class StaticFile(NamedTuple):
    """A static file in memory. ``etag`` is a hash of its content."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> StaticFile:
        return cls(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def response(self, request: Request) -> Response:
        """Return the file, or status 304 if the client already has it."""
        headers = {**_HEADERS, "etag": self.etag}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)
