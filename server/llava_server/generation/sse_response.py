"""The HTTP response that streams a request's output as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
import msgspec
from llava_wire.messages.event import Event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.generation.disconnect import ClientDisconnected, cancel_on_disconnect
from llava_server.generation.idle_timer import Patience
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.generation.serializer import Serializer
from llava_server.generation.sse import KEEPALIVE, SSE_HEADERS
from llava_server.request_context import context_of
from llava_server.request_metrics import EventObserver

__all__ = ["EventStream"]

logger = logging.getLogger(__name__)


class EventStream(Response):
    """The response as server-sent events. Made once the first event is known not to be an error.

    After ``keepalive_s`` seconds without an event it sends a comment; if the client reads nothing for
    ``send_timeout_s`` seconds it closes the connection. ``start`` is the number of tokens that the client has
    already: only later ones are sent. Closes the outputs in every case.
    """

    def __init__(
        self,
        outputs: MergedOutputs,
        first: tuple[int, Event] | None,
        serializer: Serializer,
        observers: Sequence[EventObserver],
        *,
        keepalive_s: float,
        send_timeout_s: float,
        start: int = 0,
    ) -> None:
        super().__init__(headers=SSE_HEADERS)
        del self.headers["content-length"]
        self._outputs = outputs
        self._first = first
        self._serializer = serializer
        self._observers = observers
        self._start = start
        # There is no single position in the streams of several jobs.
        self._job_id = outputs.job_id if len(outputs) == 1 else None
        self._send_scope = anyio.CancelScope()
        self._keepalive_timer = Patience(keepalive_s, outputs.wake)
        self._send_timer = Patience(send_timeout_s, self._send_scope.cancel)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cancel_on_disconnect(receive, self._send_all(scope, send))
        except ClientDisconnected:
            logger.info("client of job %s left", self._outputs.job_id)
        except TimeoutError:
            logger.warning("reader of job %s stands still and is cut", self._outputs.job_id)
        finally:
            self._keepalive_timer.close()
            self._send_timer.close()
            await self._outputs.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        with self._send_scope:
            await self._send_response(scope, send)
        if self._send_scope.cancelled_caught:
            raise TimeoutError

    async def _send_response(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if not self._start:
                await self._send(send, self._serializer.begin(len(self._outputs)))
            ending = await self._send_events(send)
        except ApiError as error:
            context = context_of(scope)
            context.record_error(error)
            ending = self._serializer.error(error, context.request_id)
        await self._send(send, ending, more=False)

    async def _send_events(self, send: Send) -> bytes:
        """Send the events of all choices. Return, unsent, the last event and the end of the stream."""
        while True:
            index, event = await self._next(send)
            self._observers[index].observe(event)
            if event.final is not None and event.final.error is not None:
                raise self._outputs.failure(index, event.final.error)
            missing = _missing_part(event, self._start)
            # The serializer follows the whole output: it also gets what the client has.
            data = self._serializer.event(index, missing or event, self._id(event))
            if self._outputs.is_over:
                return data + self._serializer.end()
            if data and missing is not None:
                await self._send(send, data)

    async def _next(self, send: Send) -> tuple[int, Event]:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        self._keepalive_timer.begin()
        while (found := await self._outputs.next_or_woken()) is None:
            await self._send(send, KEEPALIVE)
        self._keepalive_timer.end()
        return found

    def _id(self, event: Event) -> str | None:
        """Return the position of an event in its job."""
        return f"{self._job_id}:{event.next_offset}" if self._job_id else None

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        self._send_timer.begin()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._send_timer.end()


def _missing_part(event: Event, start: int) -> Event | None:
    """Return what a client that has ``start`` tokens lacks of an event; None if it has all of it.

    The end is always sent: a client that has all tokens does not know that they are all. Raises ApiError if
    ``start`` is in the middle of the event.
    """
    if event.offset >= start:
        return event
    if event.next_offset > start:
        raise ApiError(
            "invalid_value",
            f"no event ends at token {start}: use the number in the id of the last event that came whole",
            param="starting_after",
        )
    return msgspec.structs.replace(event, text="", logprobs=()) if event.final else None
