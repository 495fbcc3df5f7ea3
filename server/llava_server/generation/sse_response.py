"""The HTTP response that streams a request's output as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import msgspec
from llava_wire.messages.event import Event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llava_server.errors import ApiError, error_bytes
from llava_server.generation.disconnect import ClientDisconnected, cancel_on_disconnect
from llava_server.generation.idle_timer import Patience
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.generation.serializer import Serializer
from llava_server.generation.sse import KEEPALIVE, SSE_HEADERS
from llava_server.request_context import context_of
from llava_server.request_metrics import EventObserver
from llava_server.settings import Settings

__all__ = ["EventStream", "StreamPace", "after", "stream_pace"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamPace:
    """Seconds of silence before a comment is sent, and of a reader's standstill before it is cut."""

    keepalive_s: float
    send_timeout_s: float


def stream_pace(settings: Settings) -> StreamPace:
    """As this server is set."""
    return StreamPace(settings.keepalive_s, settings.send_timeout_s)


class EventStream(Response):
    """The answer as server-sent events. Made when the first event is here, so that 200 is the truth.

    ``start`` is the number of tokens that the reader has already: what it missed and what comes is sent.
    Closes the choices in the end, however it ends.
    """

    def __init__(
        self,
        outputs: MergedOutputs,
        first: tuple[int, Event] | None,
        serializer: Serializer,
        observers: Sequence[EventObserver],
        pace: StreamPace,
        *,
        start: int = 0,
    ) -> None:
        super().__init__(headers=SSE_HEADERS)
        del self.headers["content-length"]
        self._outputs = outputs
        self._first = first
        self._serializer = serializer
        self._observers = observers
        self._pace = pace
        self._start = start
        # No single place stands for several jobs' streams.
        self._job_id = outputs.job_id if len(outputs) == 1 else None
        self._standstill = anyio.CancelScope()
        self._silent = Patience(pace.keepalive_s, outputs.wake)
        self._sending = Patience(pace.send_timeout_s, self._standstill.cancel)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cancel_on_disconnect(receive, self._send_all(scope, send))
        except ClientDisconnected:
            logger.info("client of job %s left", self._outputs.job_id)
        except TimeoutError:
            logger.warning("reader of job %s stands still and is cut", self._outputs.job_id)
        finally:
            self._silent.close()
            self._sending.close()
            await self._outputs.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        with self._standstill:
            await self._send_answer(scope, send)
        if self._standstill.cancelled_caught:
            raise TimeoutError

    async def _send_answer(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if not self._start:
                await self._send(send, self._serializer.begin(len(self._outputs)))
            ending = await self._send_events(send)
        except ApiError as error:
            context = context_of(scope)
            context.record_error(error)
            ending = self._serializer.error(error_bytes(error, context.request_id))
        await self._send(send, ending, more=False)

    async def _send_events(self, send: Send) -> bytes:
        """Every event of every choice but what belongs to the last one's end, which is returned."""
        while True:
            index, event = await self._next(send)
            self._observers[index].observe(event)
            if event.final is not None and event.final.error is not None:
                raise self._outputs.failure(index, event.final.error)
            rest = after(event, self._start)
            # The serializer follows the whole output: it also gets what the client has.
            data = self._serializer.event(index, rest or event, self._id(event))
            if self._outputs.is_over:
                return data + self._serializer.end()
            if data and rest is not None:
                await self._send(send, data)

    async def _next(self, send: Send) -> tuple[int, Event]:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        self._silent.begin()
        while (found := await self._outputs.next_or_woken()) is None:
            await self._send(send, KEEPALIVE)
        self._silent.end()
        return found

    def _id(self, event: Event) -> str | None:
        """Where in its job an event stands."""
        return f"{self._job_id}:{event.next_offset}" if self._job_id else None

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        self._sending.begin()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending.end()


def after(event: Event, start: int) -> Event | None:
    """What a reader who has ``start`` tokens lacks of an event. Raises ApiError if it begins in its middle.

    The end is always told: having all tokens does not mean to know that they are all.
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
