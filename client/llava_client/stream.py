"""Streamed responses. Each is both an iterator over text deltas and a context manager.

``Stream`` and ``AsyncStream`` feed the bytes of an HTTP response to a ``StreamState``, which parses them.
Both classes always close the response. If the connection is lost, the ``StreamOpener`` opens a new
connection, on which the stream resumes after the last event received. Iteration continues without a gap.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import httpx2

from llava_client.errors import APIError, LlavaError
from llava_client.stream_state import StreamState
from llava_client.types import Answer, Usage

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncStream", "Stream"]


class StreamOpener(Protocol):
    """Reopens a broken stream after its last event, or cancels a completion.

    Both methods raise LlavaError if they fail.
    """

    def reopen(self, last_event_id: str) -> httpx2.Response: ...
    def cancel(self, completion_id: str) -> None: ...


class AsyncStreamOpener(Protocol):
    """The asyncio version of ``StreamOpener``."""

    async def reopen(self, last_event_id: str) -> httpx2.Response: ...
    async def cancel(self, completion_id: str) -> None: ...


class BaseStream:
    """Properties and checks shared by both kinds of stream."""

    def __init__(self, response: httpx2.Response, on_close: Callable[[str], None] | None = None) -> None:
        self._response = response
        self._on_close = on_close
        self._state = StreamState(response.headers.get("x-request-id"))

    @property
    def text(self) -> str:
        """The text received so far."""
        return self._state.text

    @property
    def finish_reason(self) -> str | None:
        """Why generation ended, such as "stop" or "length". None until generation has ended."""
        return self._state.finish_reason

    @property
    def usage(self) -> Usage | None:
        """The token counts. None until the server has sent them."""
        return self._state.usage

    @property
    def id(self) -> str:
        """The completion ID, or an empty string before the first event."""
        return self._state.id

    @property
    def model(self) -> str:
        """The model that generates the response."""
        return self._state.model

    @property
    def request_id(self) -> str | None:
        """The ID of the HTTP request in the server's logs."""
        return self._state.request_id

    def _check_content_type(self) -> None:
        content_type = self._response.headers.get("content-type", "no content type")
        if not content_type.startswith("text/event-stream"):
            url = self._response.url
            raise APIError(f"{url} returned {content_type} instead of an event stream. Check the base URL.")

    def _run_on_close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self._state.text)

    def _end_unfinished(self) -> str | None:
        """If the server may still be generating the completion, end the stream and return the completion ID.

        Otherwise, return None.
        """
        completion_id = self._state.id if self._state.can_resume else None
        if completion_id:
            self._state.end()
        return completion_id

    def _has_started(self) -> bool:
        return self._state.num_events > 0 or self._state.is_over

    def _raise_failure(self) -> None:
        if self._state.failure is not None:
            raise self._state.failure


class Stream(BaseStream):
    """An iterator over the text deltas of a response, created by ``Client.stream``.

    Closing the stream early, with ``close()`` or by leaving the ``with`` block, cancels the response on the
    server. If the stream fails, it first yields all deltas already received and then raises the error.
    """

    def __init__(
        self,
        response: httpx2.Response,
        on_close: Callable[[str], None] | None = None,
        *,
        opener: StreamOpener,
    ) -> None:
        super().__init__(response, on_close)
        self._opener = opener
        self._chunks = response.iter_bytes()
        self._iterator = self._deltas()

    def begin(self) -> Self:
        """Wait for the first event. The client retries failures that occur before this event."""
        try:
            self._check_content_type()
            while not self._has_started():
                self._read()
            if not self._state.text:
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
        """Read the rest of the stream and return the complete response.

        Raises the same errors as iteration.
        """
        for _ in self:
            pass
        return self._state.answer()

    def close(self) -> None:
        """Close the connection and cancel an unfinished response."""
        self._response.close()
        if completion_id := self._end_unfinished():
            with suppress(LlavaError):  # if this fails, the server soon notices the disconnect and cancels it
                self._opener.cancel(completion_id)
        self._run_on_close()

    def _deltas(self) -> Iterator[str]:
        try:
            yield from self._state.take_deltas()
            while not self._state.is_over:
                self._read()
                yield from self._state.take_deltas()
            self._raise_failure()
        finally:
            self.close()

    def _read(self) -> None:
        try:
            chunk = next(self._chunks, None)
        except (httpx2.RequestError, httpx2.StreamError) as exc:
            self._reconnect(exc)
            return
        if chunk is None:
            self._reconnect(None)
        else:
            self._state.feed(chunk)

    def _reconnect(self, cause: Exception | None) -> None:
        """Continue on a new connection if the stream can be resumed. Otherwise, end the stream."""
        self._response.close()
        if not self._state.can_resume:
            self._state.end(cause)
            return
        try:
            self._response = self._opener.reopen(self._state.last_event_id)
        except LlavaError as failure:
            self._state.end(cause or failure)
            return
        self._state.resume()
        self._chunks = self._response.iter_bytes()


class AsyncStream(BaseStream):
    """The asyncio version of ``Stream``, created by ``AsyncClient.stream``."""

    def __init__(
        self,
        response: httpx2.Response,
        on_close: Callable[[str], None] | None = None,
        *,
        opener: AsyncStreamOpener,
    ) -> None:
        super().__init__(response, on_close)
        self._opener = opener
        self._chunks = response.aiter_bytes()
        self._iterator = self._deltas()

    async def begin(self) -> Self:
        """Wait for the first event. The client retries failures that occur before this event."""
        try:
            self._check_content_type()
            while not self._has_started():
                await self._read()
            if not self._state.text:
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
        """Read the rest of the stream and return the complete response.

        Raises the same errors as iteration.
        """
        async for _ in self:
            pass
        return self._state.answer()

    async def aclose(self) -> None:
        """Close the connection and cancel an unfinished response."""
        await self._response.aclose()
        if completion_id := self._end_unfinished():
            with suppress(LlavaError):  # if this fails, the server soon notices the disconnect and cancels it
                await self._opener.cancel(completion_id)
        self._run_on_close()

    async def _deltas(self) -> AsyncIterator[str]:
        try:
            for delta in self._state.take_deltas():
                yield delta
            while not self._state.is_over:
                await self._read()
                for delta in self._state.take_deltas():
                    yield delta
            self._raise_failure()
        finally:
            await self.aclose()

    async def _read(self) -> None:
        try:
            chunk = await anext(self._chunks, None)
        except (httpx2.RequestError, httpx2.StreamError) as exc:
            await self._reconnect(exc)
            return
        if chunk is None:
            await self._reconnect(None)
        else:
            self._state.feed(chunk)

    async def _reconnect(self, cause: Exception | None) -> None:
        """Continue on a new connection if the stream can be resumed. Otherwise, end the stream."""
        await self._response.aclose()
        if not self._state.can_resume:
            self._state.end(cause)
            return
        try:
            self._response = await self._opener.reopen(self._state.last_event_id)
        except LlavaError as failure:
            self._state.end(cause or failure)
            return
        self._state.resume()
        self._chunks = self._response.aiter_bytes()
