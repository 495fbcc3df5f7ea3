"""A streamed answer: an iterator of text deltas that is also a context manager.

``Stream`` and ``AsyncStream`` move bytes from a response into a ``Transcript``, which understands them, and
close the response whatever happens. When a connection breaks in mid-stream, the client that made the stream
opens another one where it stopped; the reader notices nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import httpx2

from llava_client.errors import APIError, LlavaError
from llava_client.stream_state import Transcript
from llava_client.types import Answer, Usage

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncStream", "Stream"]


class Source(Protocol):
    """Where a stream comes from: opens it again after an event, and cancels an answer. Raises LlavaError."""

    def reopen(self, last_event_id: str) -> httpx2.Response: ...
    def cancel(self, completion_id: str) -> None: ...


class AsyncSource(Protocol):
    """The same, awaited."""

    async def reopen(self, last_event_id: str) -> httpx2.Response: ...
    async def cancel(self, completion_id: str) -> None: ...


class _Received:
    """What both kinds of stream show of their transcript."""

    def __init__(self, response: httpx2.Response, on_close: Callable[[str], None] | None = None) -> None:
        self._response = response
        self._on_close = on_close
        self._transcript = Transcript(response.headers.get("x-request-id"))

    @property
    def text(self) -> str:
        """All deltas so far, joined."""
        return self._transcript.text

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, "stop" or "length"; None until then."""
        return self._transcript.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Token counts; None until the end."""
        return self._transcript.usage

    @property
    def id(self) -> str:
        """The completion's id; empty before the first event."""
        return self._transcript.id

    @property
    def model(self) -> str:
        """The model that answers."""
        return self._transcript.model

    @property
    def request_id(self) -> str | None:
        """The HTTP request's id in the server's logs."""
        return self._transcript.request_id

    def _check_kind(self) -> None:
        kind = self._response.headers.get("content-type", "nothing")
        if not kind.startswith("text/event-stream"):
            raise APIError(
                f"{self._response.url} answered with {kind}, not an event stream: is the base URL right?"
            )

    def _report_close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self._transcript.text)

    def _give_up(self) -> str | None:
        """Of an answer that would be kept for a reader who does not come back: its id, once."""
        unwanted = self._transcript.id if self._transcript.can_resume else None
        if unwanted:
            self._transcript.end()
        return unwanted

    def _has_begun(self) -> bool:
        return self._transcript.num_events > 0 or self._transcript.is_over

    def _raise_failure(self) -> None:
        if self._transcript.failure is not None:
            raise self._transcript.failure


class Stream(_Received):
    """Yields the answer's text in pieces as they come.

    Closing early (``close()``, or leaving the ``with`` block) cancels the answer on the server. A failure is
    raised after the deltas that came before it. Get one from ``Client.stream``.
    """

    def __init__(
        self, response: httpx2.Response, on_close: Callable[[str], None] | None = None, *, source: Source
    ) -> None:
        super().__init__(response, on_close)
        self._source = source
        self._chunks = response.iter_bytes()
        self._iterator = self._deltas()

    def begin(self) -> Self:
        """Wait for the first event; until then a failure may be tried again by whoever asked."""
        try:
            self._check_kind()
            while not self._has_begun():
                self._read()
            if not self._transcript.text:
                self._raise_failure()
        except BaseException:
            self._response.close()
            raise
        return self

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._iterator)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self) -> Answer:
        """Read to the end and give the whole answer. Raises what iterating would raise."""
        for _ in self:
            pass
        return self._transcript.answer()

    def close(self) -> None:
        """Hang up; harmless when the stream is over."""
        self._response.close()
        if unwanted := self._give_up():
            with suppress(LlavaError):  # it ends by itself a little later
                self._source.cancel(unwanted)
        self._report_close()

    def _deltas(self) -> Iterator[str]:
        try:
            yield from self._transcript.take_deltas()
            while not self._transcript.is_over:
                self._read()
                yield from self._transcript.take_deltas()
            self._raise_failure()
        finally:
            self.close()

    def _read(self) -> None:
        try:
            chunk = next(self._chunks, None)
        except (httpx2.RequestError, httpx2.StreamError) as exc:
            self._go_on(exc)
            return
        if chunk is None:
            self._go_on(None)
        else:
            self._transcript.feed(chunk)

    def _go_on(self, cause: Exception | None) -> None:
        """The bytes have ended: on another connection if that can be, else the stream is over."""
        self._response.close()
        if not self._transcript.can_resume:
            self._transcript.end(cause)
            return
        try:
            self._response = self._source.reopen(self._transcript.last_event_id)
        except LlavaError as failure:
            self._transcript.end(cause or failure)
            return
        self._transcript.resume()
        self._chunks = self._response.iter_bytes()


class AsyncStream(_Received):
    """The same as ``Stream``, with ``async for`` and ``async with``. Get one from ``AsyncClient.stream``."""

    def __init__(
        self, response: httpx2.Response, on_close: Callable[[str], None] | None = None, *, source: AsyncSource
    ) -> None:
        super().__init__(response, on_close)
        self._source = source
        self._chunks = response.aiter_bytes()
        self._iterator = self._deltas()

    async def begin(self) -> Self:
        """Wait for the first event; until then a failure may be tried again by whoever asked."""
        try:
            self._check_kind()
            while not self._has_begun():
                await self._read()
            if not self._transcript.text:
                self._raise_failure()
        except BaseException:
            await self._response.aclose()
            raise
        return self

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await self._iterator.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def answer(self) -> Answer:
        """Read to the end and give the whole answer. Raises what iterating would raise."""
        async for _ in self:
            pass
        return self._transcript.answer()

    async def aclose(self) -> None:
        """Hang up; harmless when the stream is over."""
        await self._response.aclose()
        if unwanted := self._give_up():
            with suppress(LlavaError):  # it ends by itself a little later
                await self._source.cancel(unwanted)
        self._report_close()

    async def _deltas(self) -> AsyncIterator[str]:
        try:
            for delta in self._transcript.take_deltas():
                yield delta
            while not self._transcript.is_over:
                await self._read()
                for delta in self._transcript.take_deltas():
                    yield delta
            self._raise_failure()
        finally:
            await self.aclose()

    async def _read(self) -> None:
        try:
            chunk = await anext(self._chunks, None)
        except (httpx2.RequestError, httpx2.StreamError) as exc:
            await self._go_on(exc)
            return
        if chunk is None:
            await self._go_on(None)
        else:
            self._transcript.feed(chunk)

    async def _go_on(self, cause: Exception | None) -> None:
        """The bytes have ended: on another connection if that can be, else the stream is over."""
        await self._response.aclose()
        if not self._transcript.can_resume:
            self._transcript.end(cause)
            return
        try:
            self._response = await self._source.reopen(self._transcript.last_event_id)
        except LlavaError as failure:
            self._transcript.end(cause or failure)
            return
        self._transcript.resume()
        self._chunks = self._response.aiter_bytes()
