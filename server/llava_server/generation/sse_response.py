"""An HTTP response that streams the output of a request, by default as server-sent events.

    event arrives, client keeps up        controller --put--> _write_arrived --> connection
    client is slow, or many events        controller --put--> OutputQueue --> task --> connection

Waking a task for each token takes longer than encoding the token. While the task waits for events, they are
therefore written where they arrive. The task sends all others: the first and the last one, those that arrive
while the client is not reading, and those that arrive together, which become one write.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from llava_wire.messages.event import Event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llava_server.body_writer import body_writer_of
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.disconnect import ClientDisconnected, cancel_on_disconnect
from llava_server.generation.idle_timer import IdleTimer
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.generation.sse import last_event
from llava_server.generation.stream_format import SSE, StreamFormat
from llava_server.metrics import EventObserver
from llava_server.request_context import context_of
from llava_server.response_model import ResponseModel

__all__ = ["EventStream", "Serializer"]

logger = logging.getLogger(__name__)

# Events that are sent together, and after which other requests are served, if even more events are available
_BURST_EVENTS = 16


class Serializer(Protocol):
    """A serializer for the response format of one API. All returned bytes are encoded events."""

    def begin(self, num_choices: int) -> bytes:
        """Return the encoded events to send before the first event of the job."""
        ...

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """Serialize an event of the choice with the given index.

        Return empty bytes if there is nothing to send yet.

        ``event_id`` is the position after which the stream can be resumed, or None if it cannot be resumed.
        """
        ...

    def end(self) -> bytes:
        """Return the encoded events to send after the last event of the job."""
        ...

    def error(self, error: ApiError, request_id: str | None) -> bytes:
        """Return the last encoded event of a failed stream."""
        ...

    def to_response(self, choices: Sequence[CollectedChoice]) -> ResponseModel:
        """Return the body of a non-streaming response."""
        ...


class EventStream(Response):
    """A response that streams outputs and then closes them.

    The status is always 200, so create the response only after the first event has arrived without an error.
    After ``keepalive_s`` seconds without an event, the keepalive of ``stream_format`` is sent. ``start`` is
    the number of tokens that a resuming client has already received. Only later tokens are sent.
    """

    def __init__(
        self,
        outputs: MergedOutputs,
        first: tuple[int, Event] | None,
        serializer: Serializer,
        observers: Sequence[EventObserver],
        *,
        keepalive_s: float,
        start: int = 0,
        stream_format: StreamFormat = SSE,
    ) -> None:
        super().__init__(headers=stream_format.headers)
        del self.headers["content-length"]
        self._outputs = outputs
        self._first = first
        self._serializer = serializer
        self._observers = observers
        self._start = start
        self._unsent: list[bytes] = []  # encoded events that the task has not sent yet
        self._failure: Exception | None = None  # raised by an event that was written where it arrived
        self._keepalive = stream_format.keepalive
        # A stream of several jobs cannot be resumed, because an event ID is a position in a single job.
        self._resumable_job_id = outputs.job_id if len(outputs) == 1 else None
        self._keepalive_timer = IdleTimer(keepalive_s, outputs.wake)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cancel_on_disconnect(receive, self._stream(scope, send))
        except ClientDisconnected:
            logger.info("client of job %s disconnected", self._outputs.job_id)
        finally:
            self._keepalive_timer.close()
            await self._outputs.aclose()

    async def _stream(self, scope: Scope, send: Send) -> None:
        self._take_turn = context_of(scope).take_turn
        self._writer = body_writer_of(scope)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if not self._start:
                await self._send(send, self._serializer.begin(len(self._outputs)))
            last = await self._send_events(send)
        except ApiError as error:
            context = context_of(scope)
            context.record_error(error)
            last = b"".join(self._unsent) + self._serializer.error(error, context.request_id)
        await self._send(send, last, more=False)

    async def _send_events(self, send: Send) -> bytes:
        """Send all events except the last one, which is encoded and returned. Raises ApiError."""
        while True:
            index, event = await self._next_event(send)
            data = self._encode(index, event)
            if self._outputs.is_finished:
                return b"".join(self._unsent) + data + self._serializer.end()
            self._unsent.append(data)

    def _encode(self, index: int, event: Event) -> bytes:
        """Return what the client must receive of an event. Raises ApiError."""
        self._observers[index].observe(event)
        if event.final is not None and event.final.error is not None:
            raise self._outputs.api_error(index, event.final.error)
        is_received = self._start > 0 and _is_received(event, self._start)
        # The serializer needs the complete output, including the part that the client has already received.
        data = self._serializer.event(index, event, self._event_id(event))
        if not is_received:
            return data
        # A client that has received all tokens may not have received the finish reason.
        return last_event(data) if self._outputs.is_finished else b""

    async def _next_event(self, send: Send) -> tuple[int, Event]:
        """Return the next event. Before waiting for it, send the events so far."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if len(self._unsent) >= _BURST_EVENTS:
            await self._send_unsent(send)
            await self._take_turn()
        if (item := self._outputs.get_nowait()) is None:
            await self._send_unsent(send)
            item = await self._wait(send)
        return item

    async def _wait(self, send: Send) -> tuple[int, Event]:
        """Wait for an event that could not be written where it arrived, sending keepalives in the meantime.

        Raises the error of an event that was written.
        """
        self._keepalive_timer.start()
        self._outputs.set_receiver(self._write_arrived)
        try:
            while (item := await self._outputs.next_or_woken()) is None and self._failure is None:
                await self._send(send, self._keepalive)
        finally:
            self._outputs.set_receiver(None)
            self._keepalive_timer.stop()
        if self._failure is not None:
            raise self._failure
        assert item is not None
        return item

    def _write_arrived(self, index: int, event: Event) -> bool:
        """Write an event that has just arrived. Return False if it must be put into the queue instead."""
        if self._failure is not None or not self._writer.is_ready:
            return False
        try:
            data = self._encode(index, event)
        except Exception as error:  # ends this stream, and not the controller that calls this function
            self._failure = error
            self._outputs.wake()
            return True
        if data:
            self._writer.write(data)
        self._keepalive_timer.start()
        return True

    async def _send_unsent(self, send: Send) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        if data:
            await self._send(send, data)

    def _event_id(self, event: Event) -> str | None:
        """Return the ID of the position after this event, or None if the stream cannot be resumed."""
        return f"{self._resumable_job_id}:{event.next_offset}" if self._resumable_job_id else None

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        if more and data and self._writer.is_ready:
            self._writer.write(data)
            return
        await send({"type": "http.response.body", "body": data, "more_body": more})


def _is_received(event: Event, start: int) -> bool:
    """Return whether an event's tokens are among the first ``start`` tokens of the job.

    Raises ApiError if ``start`` is in the middle of the event.
    """
    if event.offset < start < event.next_offset:
        raise ApiError(
            "invalid_value",
            f"No event ends at token {start}. Use the token count from the ID of the last event that you "
            "received in full.",
            param="starting_after",
        )
    return event.offset < start
