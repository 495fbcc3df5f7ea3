"""``AsyncClient``, the asyncio client. The ``client`` module describes the structure of both clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from llava_client import endpoints
from llava_client.base_client import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT, BaseClient
from llava_client.batches import Batch, BatchRequests, BatchResult, batch_file, lacks_model, read_results
from llava_client.chat_request import ChatOptions, chat_body
from llava_client.connection import Connection
from llava_client.conversation import AsyncConversation
from llava_client.endpoints import ApiRequest
from llava_client.errors import LlavaError, connection_errors, status_error
from llava_client.images import Images
from llava_client.parse_response import read_answer
from llava_client.retries import RetryPolicy, RetryState
from llava_client.stream import AsyncStream
from llava_client.types import Answer, Embeddings, Model

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient(BaseClient[httpx2.AsyncClient]):
    """The asyncio version of ``Client``. Image files are read in a thread.

    Await ``client.chat(...)`` to get a complete response. To stream a response, await ``client.stream(...)``
    and iterate over the result with ``async for``.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx2.Timeout = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
        retry_policy: RetryPolicy | None = None,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        connection = Connection.resolve(base_url, api_key)
        http = http_client or httpx2.AsyncClient(trust_env=not connection.is_local)
        super().__init__(
            connection, http, timeout=timeout, max_retries=max_retries, retry_policy=retry_policy
        )
        self._owns_http = http_client is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close idle connections."""
        if self._owns_http:
            await self._http.aclose()

    async def chat(
        self,
        question: str | None = None,
        *,
        image: Images = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Return the complete response. The arguments and errors are the same as for ``Client.chat``."""
        body = await self._body(question, image, messages, options)
        request = self._chat_request(body, options, is_stream=False)

        async def attempt() -> Answer:
            return read_answer(await self._http.send(request))

        return await self._with_retries(attempt)

    async def stream(
        self,
        question: str | None = None,
        *,
        image: Images = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        on_close: Callable[[str], None] | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncStream:
        """Stream the response. The arguments and errors are the same as for ``Client.stream``."""
        body = await self._body(question, image, messages, options)
        request = self._chat_request(body, options, is_stream=True)
        opener = _StreamOpener(self, options)

        async def attempt() -> AsyncStream:
            return await AsyncStream(await self._send(request), on_close, opener=opener).begin()

        return await self._with_retries(attempt)

    async def models(self) -> list[Model]:
        """Return the models that the server offers.

        Raises APIConnectionError or APIError if the request fails.
        """
        return await self._execute(endpoints.models())

    def conversation(self, *, image: Images = None, **options: Unpack[ChatOptions]) -> AsyncConversation:
        """Create a conversation.

        ``image`` is sent with the first question. ``options`` are sent with every question.
        """
        return AsyncConversation(self, image=image, options=options)

    async def embed(
        self, text: str | Sequence[str] | None = None, *, image: Images = None, model: str | None = None
    ) -> Embeddings:
        """Return the embeddings of texts or images.

        The arguments and errors are the same as for ``Client.embed``.
        """
        body = await asyncio.to_thread(endpoints.embed_body, text, image, model)
        return await self._execute(endpoints.embed(await self._with_model(body)))

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        model: str | None = None,
    ) -> list[int]:
        """Return the token IDs of a text or prompt.

        The arguments and errors are the same as for ``Client.tokenize``.
        """
        body = endpoints.tokenize_body(text, messages, model)
        return await self._execute(endpoints.tokenize(await self._with_model(body)))

    async def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """Convert token IDs to text. Raises the same errors as ``Client.detokenize``."""
        body = endpoints.detokenize_body(tokens, model)
        return await self._execute(endpoints.detokenize(await self._with_model(body)))

    async def retrieve_answer(self, answer_id: str) -> Answer:
        """Wait until an earlier response is complete and return it.

        Raises the same errors as ``Client.retrieve_answer``.
        """
        return await self._execute(endpoints.retrieve_answer(answer_id))

    async def delete_answer(self, answer_id: str) -> None:
        """Cancel a response if it is still running, and delete it.

        Raises the same errors as ``Client.delete_answer``.
        """
        await self._execute(endpoints.delete_answer(answer_id))

    async def submit_batch(
        self, requests: BatchRequests, *, metadata: Mapping[str, str] | None = None
    ) -> Batch:
        """Submit a batch of chat requests.

        The arguments and errors are the same as for ``Client.submit_batch``.
        """
        requests = requests if isinstance(requests, (str, bytes, os.PathLike)) else list(requests)
        model = await self._model() if lacks_model(requests) else None
        data = await asyncio.to_thread(batch_file, requests, model)
        file_id = await self._execute(endpoints.upload(data))
        return (await self._execute(endpoints.create_batch(file_id, metadata))).checked()

    async def retrieve_batch(self, batch_id: str) -> Batch:
        """Return the current state of a batch. Raises the same errors as ``Client.retrieve_batch``."""
        return await self._execute(endpoints.retrieve_batch(batch_id))

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel a batch. Raises the same errors as ``Client.cancel_batch``."""
        return await self._execute(endpoints.cancel_batch(batch_id))

    async def follow_batch(self, batch_id: str, *, poll_s: float = 1.0) -> AsyncIterator[Batch]:
        """Yield the state of a batch immediately and after each change until the batch ends.

        Raises the same errors as ``Client.follow_batch``.
        """
        last: Batch | None = None
        while last is None or not last.is_over:
            if last is not None:
                await asyncio.sleep(poll_s)
            batch = await self._execute(endpoints.retrieve_batch(batch_id), self._resume_retries())
            if batch != last:
                yield batch
            last = batch

    async def batch_results(self, batch_id: str, *, poll_s: float = 1.0) -> AsyncIterator[BatchResult]:
        """Wait until the batch ends, then yield its results.

        Raises the same errors as ``Client.batch_results``.
        """
        *_, batch = [batch async for batch in self.follow_batch(batch_id, poll_s=poll_s)]
        for file_id in filter(None, (batch.checked().output_file_id, batch.error_file_id)):
            for result in read_results(await self._execute(endpoints.download(file_id))):
                yield result

    async def _body(
        self,
        question: str | None,
        image: Images,
        messages: Sequence[Mapping[str, Any]] | None,
        options: ChatOptions,
    ) -> dict[str, Any]:
        return await self._with_model(await asyncio.to_thread(chat_body, question, image, messages, options))

    async def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        return body if "model" in body else {**body, "model": await self._model()}

    async def _model(self) -> str:
        if self._default_model is None:
            self._default_model = await self._execute(endpoints.default_model())
        return self._default_model

    async def _execute(self, api_request: ApiRequest[T], retries: RetryState | None = None) -> T:
        async def attempt() -> T:
            return api_request.parse(await self._http.send(self._request(api_request)))

        return await self._with_retries(attempt, retries or self._retries_for(api_request))

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return the response without reading its body.

        Raises APIStatusError if the response is an error.
        """
        response = await self._http.send(request, stream=True)
        if not response.is_success:
            await response.aread()
            raise status_error(response)
        return response

    async def _with_retries(
        self, attempt: Callable[[], Awaitable[T]], retries: RetryState | None = None
    ) -> T:
        retries = retries or self._new_retries()
        while True:
            try:
                with connection_errors(self.base_url):
                    return await attempt()
            except LlavaError as failure:
                delay_s = retries.next_delay_s(failure)
                if delay_s is None:
                    self._reset_model_after(failure)
                    raise
            await asyncio.sleep(delay_s)


class _StreamOpener:
    """Reopens or cancels the stream for one request."""

    def __init__(self, client: AsyncClient, options: ChatOptions) -> None:
        self._client = client
        self._options = options

    async def reopen(self, last_event_id: str) -> httpx2.Response:
        client = self._client
        request = client._resume_request(last_event_id, self._options)
        return await client._with_retries(lambda: client._send(request), client._resume_retries())

    async def cancel(self, completion_id: str) -> None:
        with connection_errors(self._client.base_url):
            await self._client._http.send(self._client._cancel_request(completion_id))
