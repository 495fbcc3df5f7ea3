"""Static files in memory, served with an ETag, and compressed if the client supports it."""

from __future__ import annotations

import gzip
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
    "vary": "accept-encoding",
}


class StaticFile(NamedTuple):
    """A static file in memory.

    ``etag`` is a hash of its content, and ``compressed`` is its content in gzip's format.
    """

    content: bytes
    compressed: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> StaticFile:
        compressed = gzip.compress(content, mtime=0)
        return cls(content, compressed, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def response(self, request: Request) -> Response:
        """Return the file, or status 304 if the client already has it."""
        is_compressed = _accepts_gzip(request) and len(self.compressed) < len(self.content)
        etag = f'{self.etag[:-1]}-gzip"' if is_compressed else self.etag  # RFC 9110: one per representation
        headers = {**_HEADERS, "etag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        if is_compressed:
            headers["content-encoding"] = "gzip"
        content = self.compressed if is_compressed else self.content
        return Response(content, media_type=self.media_type, headers=headers)


def _accepts_gzip(request: Request) -> bool:
    """Return whether the client accepts responses in gzip's format. A weight of 0 excludes it."""
    for item in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = item.replace(" ", "").partition(";q=")
        if name == "gzip":
            return weight.strip("0.") != "" or weight == ""
    return False
