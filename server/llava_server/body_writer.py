"""Writing chunks of a response body directly to the connection.

A chunk that is sent through ASGI passes all middleware, uvicorn and h11, which together take longer than
encoding the chunk. None of them changes the body of a stream. The response must be started and ended through
ASGI.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

__all__ = ["BodyWriter", "add_body_writer", "body_writer_of"]

_KEY = "llava_server.body_writer"


class BodyWriter(Protocol):
    """A writer for the body of one response."""

    @property
    def is_ready(self) -> bool:
        """Whether data can be written now.

        If not, the data must be sent through ASGI: the response has not begun, its client has disconnected or
        is not reading, or the response has no body.
        """
        ...

    def write(self, data: bytes) -> None:
        """Write data, which must not be empty. Call only if the writer is ready."""
        ...


class NoBodyWriter:
    """A writer that is never ready."""

    is_ready = False

    def write(self, data: bytes) -> None:
        raise RuntimeError(f"{len(data)} bytes were written to a connection without a body writer.")


_NO_WRITER = NoBodyWriter()


def add_body_writer(scope: MutableMapping[str, Any], writer: BodyWriter) -> None:
    """Attach the writer to the ASGI scope of the request."""
    scope[_KEY] = writer


def body_writer_of(scope: Mapping[str, Any]) -> BodyWriter:
    """Return the writer for the response to a request. Without one, it is never ready."""
    writer: BodyWriter = scope.get(_KEY, _NO_WRITER)
    return writer
