"""``Client``, the blocking client.

Only this module, ``async_client`` and ``stream`` access the network. Other modules build requests, parse
responses and decide whether to retry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from llava_client import endpoints
from llava_client.base_client import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT, BaseClient
from llava_client.batches import Batch, BatchRequests, BatchResult, batch_file, lacks_model, read_results
from llava_client.chat_request import ChatOptions, chat_body
from llava_client.connection import Connection
from llava_client.conversation import Conversation
from llava_client.endpoints import ApiRequest
from llava_client.errors import LlavaError, connection_errors, status_error
from llava_client.images import Images
from llava_client.parse_response import read_answer
from llava_client.retries import RetryPolicy, RetryState
from llava_client.stream import Stream
from llava_client.types import Answer, Embeddings, Model

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Client"]

T = TypeVar("T")


class Client(BaseClient[httpx2.Client]):
    """A blocking, thread-safe client for llava-serve and other OpenAI-compatible servers.

    ``base_url`` defaults to $LLAVA_BASE_URL or, if that is not set, to http://127.0.0.1:8000. ``api_key``
    defaults to $LLAVA_API_KEY. ``timeout`` is the maximum time to wait for more data, in seconds. It does not
    limit the total time. ``max_retries`` is the maximum number of retries per request. ``retry_policy``
    determines the delays between retries. If you pass an ``http_client``, you are responsible for closing it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx2.Timeout = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
        retry_policy: RetryPolicy | None = None,
        http_client: httpx2.Client | None = None,
    ) -> None:
        connection = Connection.resolve(base_url, api_key)
        http = http_client or httpx2.Client(trust_env=not connection.is_local)
        super().__init__(
            connection, http, timeout=timeout, max_retries=max_retries, retry_policy=retry_policy
        )
        self._owns_http = http_client is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        if self._owns_http:
            self._http.close()

    def chat(
        self,
        question: str | None = None,
        *,
        image: Images = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Return the complete response to a question.

        ``messages`` contains earlier turns in OpenAI's format. ``question`` and ``image`` form the next turn.
        ``ChatOptions`` describes the other arguments. Raises TypeError or ValueError if the arguments are
        invalid, ImageError if an image is invalid, and APIConnectionError or APIError if the request fails.
        """
        body = self._with_model(chat_body(question, image, messages, options))
        request = self._chat_request(body, options, is_stream=False)
        return self._with_retries(lambda: read_answer(self._http.send(request)))

    def stream(
        self,
        question: str | None = None,
        *,
        image: Images = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        on_close: Callable[[str], None] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Stream:
        """Stream the response to a question.

        Returns after the first event, so the error for a rejected request is raised here rather than during
        iteration. Raises the same errors as ``chat``. Iterating over the stream may raise StreamInterrupted
        or APIError. When the stream closes for any reason, ``on_close`` is called once with the text received
        up to that point.
        """
        body = self._with_model(chat_body(question, image, messages, options))
        request = self._chat_request(body, options, is_stream=True)
        opener = _StreamOpener(self, options)
        return self._with_retries(lambda: Stream(self._send(request), on_close, opener=opener).begin())

    def models(self) -> list[Model]:
        """Return the models that the server offers.

        Raises APIConnectionError or APIError if the request fails.
        """
        return self._execute(endpoints.models())

    def conversation(self, *, image: Images = None, **options: Unpack[ChatOptions]) -> Conversation:
        """Create a conversation.

        ``image`` is sent with the first question. ``options`` are sent with every question.
        """
        return Conversation(self, image=image, options=options)

    def embed(
        self, text: str | Sequence[str] | None = None, *, image: Images = None, model: str | None = None
    ) -> Embeddings:
        """Return the embeddings of texts or images, at most 2,048 per call.

        Raises TypeError unless exactly one of ``text`` and ``image`` is given, ImageError if an image is
        invalid, and APIConnectionError or APIError if the request fails.
        """
        body = endpoints.embed_body(text, image, model)
        return self._execute(endpoints.embed(self._with_model(body)))

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        model: str | None = None,
    ) -> list[int]:
        """Return the token IDs of a text, or of the prompt for ``messages``, including its images.

        Raises TypeError unless exactly one of ``text`` and ``messages`` is given, and APIConnectionError or
        APIError if the request fails.
        """
        body = endpoints.tokenize_body(text, messages, model)
        return self._execute(endpoints.tokenize(self._with_model(body)))

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """Convert token IDs to text. Special tokens are omitted.

        Raises APIConnectionError or APIError if the request fails.
        """
        body = endpoints.detokenize_body(tokens, model)
        return self._execute(endpoints.detokenize(self._with_model(body)))

    def retrieve_answer(self, answer_id: str) -> Answer:
        """Wait until an earlier response is complete and return it.

        It must have been requested with this API key and with ``n`` set to 1. A response remains available
        for five minutes after it ends. Raises NotFoundError if no such response exists, and
        APIConnectionError or another APIError if the request fails.
        """
        return self._execute(endpoints.retrieve_answer(answer_id))

    def delete_answer(self, answer_id: str) -> None:
        """Cancel a response if it is still running, and delete it with all of its choices.

        Raises the same errors as ``retrieve_answer``.
        """
        self._execute(endpoints.delete_answer(answer_id))

    def submit_batch(self, requests: BatchRequests, *, metadata: Mapping[str, str] | None = None) -> Batch:
        """Submit chat requests to run at low priority within 24 hours. Returns once they are stored.

        ``requests`` contains requests created by ``batch_request``. It can also be a JSONL file, passed as a
        path or as bytes. Raises OSError if the file cannot be read, and APIConnectionError or APIError if the
        submission fails. If the file contains invalid lines, the APIError reports the first ones, and no
        requests are run.
        """
        requests = requests if isinstance(requests, (str, bytes, os.PathLike)) else list(requests)
        model = self._model() if lacks_model(requests) else None
        file_id = self._execute(endpoints.upload(batch_file(requests, model)))
        return self._execute(endpoints.create_batch(file_id, metadata)).checked()

    def retrieve_batch(self, batch_id: str) -> Batch:
        """Return the current state of a batch.

        Raises NotFoundError if the batch does not exist, and APIConnectionError or another APIError if the
        request fails.
        """
        return self._execute(endpoints.retrieve_batch(batch_id))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel a batch but keep the results of requests that have already completed.

        Raises the same errors as ``retrieve_batch``, and ConflictError if the batch has ended.
        """
        return self._execute(endpoints.cancel_batch(batch_id))

    def follow_batch(self, batch_id: str, *, poll_s: float = 1.0) -> Iterator[Batch]:
        """Yield the state of a batch immediately and after each change until the batch ends.

        Polls every ``poll_s`` seconds. Closing the iterator does not cancel the batch. Raises the same errors
        as ``retrieve_batch``.
        """
        last: Batch | None = None
        while last is None or not last.is_over:
            if last is not None:
                time.sleep(poll_s)
            batch = self._execute(endpoints.retrieve_batch(batch_id), self._resume_retries())
            if batch != last:
                yield batch
            last = batch

    def batch_results(self, batch_id: str, *, poll_s: float = 1.0) -> Iterator[BatchResult]:
        """Wait until the batch ends, then yield its responses in request order, followed by its errors.

        Raises the same errors as ``retrieve_batch``, and APIError if the batch failed.
        """
        *_, batch = self.follow_batch(batch_id, poll_s=poll_s)
        for file_id in filter(None, (batch.checked().output_file_id, batch.error_file_id)):
            yield from read_results(self._execute(endpoints.download(file_id)))

    def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        return body if "model" in body else {**body, "model": self._model()}

    def _model(self) -> str:
        if self._default_model is None:
            self._default_model = self._execute(endpoints.default_model())
        return self._default_model

    def _execute(self, api_request: ApiRequest[T], retries: RetryState | None = None) -> T:
        retries = retries or self._retries_for(api_request)
        return self._with_retries(
            lambda: api_request.parse(self._http.send(self._request(api_request))), retries
        )

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return the response without reading its body.

        Raises APIStatusError if the response is an error.
        """
        response = self._http.send(request, stream=True)
        if not response.is_success:
            response.read()
            raise status_error(response)
        return response

    def _with_retries(self, attempt: Callable[[], T], retries: RetryState | None = None) -> T:
        retries = retries or self._new_retries()
        while True:
            try:
                with connection_errors(self.base_url):
                    return attempt()
            except LlavaError as failure:
                delay_s = retries.next_delay_s(failure)
                if delay_s is None:
                    self._reset_model_after(failure)
                    raise
            time.sleep(delay_s)


class _StreamOpener:
    """Reopens or cancels the stream for one request."""

    def __init__(self, client: Client, options: ChatOptions) -> None:
        self._client = client
        self._options = options

    def reopen(self, last_event_id: str) -> httpx2.Response:
        client = self._client
        request = client._resume_request(last_event_id, self._options)
        return client._with_retries(lambda: client._send(request), client._resume_retries())

    def cancel(self, completion_id: str) -> None:
        with connection_errors(self._client.base_url):
            self._client._http.send(self._client._cancel_request(completion_id))
