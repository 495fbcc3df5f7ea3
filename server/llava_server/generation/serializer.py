"""The interface between generation and the APIs: how one request's events become a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llava_wire.messages.event import Event

from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice
from llava_server.response_model import ResponseModel

__all__ = ["Serializer"]


class Serializer(Protocol):
    """Serializes the events of one request, in order. Bytes are server-sent events of a stream."""

    def begin(self, num_choices: int) -> bytes:
        """Return what precedes the first event."""
        ...

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """Return one event of choice ``index``; empty if nothing can be sent yet.

        ``event_id`` is the position in the stream from which it can be resumed; None where there is none.
        """
        ...

    def end(self) -> bytes:
        """Return what follows the last event."""
        ...

    def error(self, error: ApiError, request_id: str | None) -> bytes:
        """Return the last event of a stream that failed."""
        ...

    def to_response(self, choices: Sequence[CollectedChoice]) -> ResponseModel:
        """Return the body of a response that is not streamed."""
        ...
