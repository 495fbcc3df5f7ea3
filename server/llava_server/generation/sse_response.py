"""How an answer reaches the client, at once or as events, and what happens when the client is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import anyio
import msgspec
from llava_wire.messages.event import Event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llava_server.api.chat.serializer import WholeAnswer
from llava_server.errors import ApiError, error_bytes
from llava_server.generation.idle_timer import Patience
from llava_server.generation.merged_outputs import Choices
from llava_server.generation.sse import KEEPALIVE, SSE_HEADERS
from llava_server.middleware.request_id import note_error, request_id_of
from llava_server.request_metrics import Meter
from llava_server.settings import Settings

__all__ = [
    "ClientGone",
    "EventStream",
    "StreamPace",
    "Writer",
    "after",
    "collect",
    "stream_pace",
    "until_gone",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ClientGone(Exception):
    """The client has hung up; there is nobody to answer."""


@dataclass(frozen=True)
class StreamPace:
    """Seconds of silence before a comment is sent, and of a reader's standstill before it is cut."""

    keepalive_s: float
    send_timeout_s: float


def stream_pace(settings: Settings) -> StreamPace:
    """As this server is set."""
    return StreamPace(settings.keepalive_s, settings.send_timeout_s)


class Writer(Protocol):
    """A route's way to say an answer. Shown every event of every choice, in order; bytes are of a stream."""

    def opening(self, num_choices: int) -> bytes:
        """What comes before the first event."""
        ...

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """One event of one choice; empty where there is nothing to tell yet. ``event_id`` is its place in the
        stream, where there is one."""
        ...

    def closing(self) -> bytes:
        """What comes after the last event."""
        ...

    def failure(self, body: bytes) -> bytes:
        """The last that a broken stream says; ``body`` is the error as JSON."""
        ...

    def whole(self, answers: Sequence[WholeAnswer]) -> dict[str, Any]:
        """The answer that is no stream."""
        ...


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``. Raises ClientGone, and cancels the work, as soon as the client hangs up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def collect(choices: Choices, first: tuple[int, Event], meters: Sequence[Meter]) -> list[WholeAnswer]:
    """Every choice's whole answer. Raises ApiError if a job failed."""
    answers = [WholeAnswer() for _ in range(len(choices))]
    index, event = first
    while True:
        meters[index].saw(event)
        if event.final is not None and event.final.error is not None:
            raise choices.failure(index, event.final.error)
        answers[index].add(event)
        if choices.is_over:
            return answers
        index, event = await choices.next()


class EventStream(Response):
    """The answer as server-sent events. Made when the first event is here, so that 200 is the truth.

    ``start`` is the number of tokens that the reader has already: what it missed and what comes is sent.
    Closes the choices in the end, however it ends.
    """

    def __init__(
        self,
        choices: Choices,
        first: tuple[int, Event] | None,
        writer: Writer,
        meters: Sequence[Meter],
        pace: StreamPace,
        *,
        start: int = 0,
    ) -> None:
        super().__init__(headers=SSE_HEADERS)
        del self.headers["content-length"]
        self._choices = choices
        self._first = first
        self._writer = writer
        self._meters = meters
        self._pace = pace
        self._start = start
        # No single place stands for several jobs' streams.
        self._job_id = choices.job_id if len(choices) == 1 else None
        self._standstill = anyio.CancelScope()
        self._silent = Patience(pace.keepalive_s, choices.wake)
        self._sending = Patience(pace.send_timeout_s, self._standstill.cancel)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._send_all(scope, send))
        except ClientGone:
            logger.info("client of job %s left", self._choices.job_id)
        except TimeoutError:
            logger.warning("reader of job %s stands still and is cut", self._choices.job_id)
        finally:
            self._silent.close()
            self._sending.close()
            await self._choices.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        with self._standstill:
            await self._send_answer(scope, send)
        if self._standstill.cancelled_caught:
            raise TimeoutError

    async def _send_answer(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if not self._start:
                await self._send(send, self._writer.opening(len(self._choices)))
            ending = await self._send_events(send)
        except ApiError as error:
            note_error(scope, error)
            ending = self._writer.failure(error_bytes(error, request_id_of(scope)))
        await self._send(send, ending, more=False)

    async def _send_events(self, send: Send) -> bytes:
        """Every event of every choice but what belongs to the last one's end, which is returned."""
        while True:
            index, event = await self._next(send)
            self._meters[index].saw(event)
            if event.final is not None and event.final.error is not None:
                raise self._choices.failure(index, event.final.error)
            rest = after(event, self._start)
            # What the reader has is shown to the writer all the same: it follows the whole answer.
            data = self._writer.event(index, rest or event, self._id(event))
            if self._choices.is_over:
                return data + self._writer.closing()
            if data and rest is not None:
                await self._send(send, data)

    async def _next(self, send: Send) -> tuple[int, Event]:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        self._silent.begin()
        while (found := await self._choices.next_or_woken()) is None:
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


async def _hang_up(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
