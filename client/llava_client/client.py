"""``Client``: the blocking shell.

Building requests, reading responses, understanding streams and deciding about retries happen in modules
without input or output; only the waiting is here and, awaited, in ``async_client``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from llava_client import endpoints as calls
from llava_client.base_client import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT, BaseClient
from llava_client.batches import Batch, BatchRequests, BatchResult, batch_file, lacks_model, read_results
from llava_client.chat_request import ChatOptions, chat_body
from llava_client.connection import Connection
from llava_client.conversation import Conversation
from llava_client.endpoints import Call
from llava_client.errors import LlavaError, connection_errors, status_error
from llava_client.images import Images
from llava_client.parse_response import read_answer
from llava_client.retries import RetryPolicy, Tries
from llava_client.stream import Stream
from llava_client.types import Answer, Embeddings, Model

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Client"]

T = TypeVar("T")


class Client(BaseClient[httpx2.Client]):
    """Asks a llava-serve (or any OpenAI-style) server, blocking. Safe to share between threads.

    ``base_url`` None is $LLAVA_BASE_URL, else http://127.0.0.1:8000; ``api_key`` None is $LLAVA_API_KEY.
    ``timeout`` in seconds bounds each silence, not the whole answer. ``max_retries`` bounds the tries after
    the first; ``retry_policy`` says how long to wait between. An ``http_client`` stays yours to close.
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
        """Ask and wait for the whole answer; ``ChatOptions`` explains the other arguments.

        ``messages`` are earlier turns, OpenAI-style; ``question`` (with ``image``) is the next one.
        Raises TypeError (nothing asked), ImageError, APIConnectionError, APIError.
        """
        body = self._with_model(chat_body(question, image, messages, options))
        request = self._chat_request(body, options, is_stream=False)
        return self._retrying(lambda: read_answer(self._http.send(request)))

    def stream(
        self,
        question: str | None = None,
        *,
        image: Images = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        on_close: Callable[[str], None] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Stream:
        """Ask and get the answer piece by piece. Returns at the first event: what is refused is refused here.

        ``on_close`` is called once with the text so far, however the stream ends. Raises as ``chat`` does;
        later, from the stream itself, StreamInterrupted and APIError.
        """
        body = self._with_model(chat_body(question, image, messages, options))
        request = self._chat_request(body, options, is_stream=True)
        source = _Source(self, options)
        return self._retrying(lambda: Stream(self._send(request), on_close, source=source).begin())

    def models(self) -> list[Model]:
        """The models that the server has now. Raises APIConnectionError, APIError."""
        return self._call(calls.models())

    def conversation(self, *, image: Images = None, **options: Unpack[ChatOptions]) -> Conversation:
        """A talk of several turns with the same options; ``image`` goes with the first question."""
        return Conversation(self, image=image, options=options)

    def embed(
        self, text: str | Sequence[str] | None = None, *, image: Images = None, model: str | None = None
    ) -> Embeddings:
        """The vectors of one or more texts, or of one or more pictures; at most 2048 at once.

        Raises TypeError (both, or neither), ImageError, APIConnectionError, APIError.
        """
        body = calls.embedding_body(text, image, model)
        return self._call(calls.embed(self._with_model(body)))

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        model: str | None = None,
    ) -> list[int]:
        """The token ids of a text, or of a conversation as the model would see it, pictures included.

        Raises TypeError (both, or neither), APIConnectionError, APIError.
        """
        body = calls.tokens_body(text, messages, model)
        return self._call(calls.tokenize(self._with_model(body)))

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """The text of token ids; special tokens have none. Raises APIConnectionError, APIError."""
        body = calls.detokenize_body(tokens, model)
        return self._call(calls.detokenize(self._with_model(body)))

    def retrieve_answer(self, answer_id: str) -> Answer:
        """An answer asked for by this key, waited for if it is under way; until five minutes after its end.

        Not with ``n`` above 1. Raises APIConnectionError, APIError: NotFoundError if there is none.
        """
        return self._call(calls.retrieve_answer(answer_id))

    def delete_answer(self, answer_id: str) -> None:
        """Cancel an answer if it is under way, and forget it with all its choices. Raises as above."""
        self._call(calls.delete_answer(answer_id))

    def submit_batch(self, requests: BatchRequests, *, metadata: Mapping[str, str] | None = None) -> Batch:
        """Have many chats answered when nobody else waits, within 24 hours; returns when they are stored.

        ``requests`` are made by ``batch_request``, or are a JSONL file, as a path or as its bytes.
        Raises OSError (no such file), APIConnectionError, APIError; the latter also for a file with wrong
        lines, by number: then none of them runs.
        """
        requests = requests if isinstance(requests, (str, bytes, os.PathLike)) else list(requests)
        model = self._model() if lacks_model(requests) else None
        file_id = self._call(calls.upload(batch_file(requests, model)))
        return self._call(calls.create_batch(file_id, metadata)).checked()

    def retrieve_batch(self, batch_id: str) -> Batch:
        """How far a batch is. Raises APIConnectionError, APIError: NotFoundError if there is none."""
        return self._call(calls.retrieve_batch(batch_id))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Stop a batch; what it has answered stays. Raises as above; ConflictError if it is over."""
        return self._call(calls.cancel_batch(batch_id))

    def follow_batch(self, batch_id: str, *, poll_s: float = 1.0) -> Iterator[Batch]:
        """The batch now and after each change, until it is over; looks every ``poll_s`` seconds.

        To stop reading does not stop the batch. Raises as ``retrieve_batch``.
        """
        seen: Batch | None = None
        while seen is None or not seen.is_over:
            if seen is not None:
                time.sleep(poll_s)
            found = self._call(calls.retrieve_batch(batch_id), self._resume_tries())
            if found != seen:
                yield found
            seen = found

    def batch_results(self, batch_id: str, *, poll_s: float = 1.0) -> Iterator[BatchResult]:
        """Wait for the batch's end; then its answers in the order of the requests, then its errors.

        Raises as ``retrieve_batch``, and APIError for a batch that has failed.
        """
        *_, batch = self.follow_batch(batch_id, poll_s=poll_s)
        for file_id in filter(None, (batch.checked().output_file_id, batch.error_file_id)):
            yield from read_results(self._call(calls.download(file_id)))

    def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        return body if "model" in body else {**body, "model": self._model()}

    def _model(self) -> str:
        if self._default_model is None:
            self._default_model = self._call(calls.default_model())
        return self._default_model

    def _call(self, call: Call[T], tries: Tries | None = None) -> T:
        tries = tries or self._call_tries(call)
        return self._retrying(lambda: call.read(self._http.send(self._request(call))), tries)

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        """The beginning of a good answer; its body is still to be read."""
        response = self._http.send(request, stream=True)
        if not response.is_success:
            response.read()
            raise status_error(response)
        return response

    def _retrying(self, attempt: Callable[[], T], tries: Tries | None = None) -> T:
        tries = tries or self._tries()
        while True:
            try:
                with connection_errors(self.base_url):
                    return attempt()
            except LlavaError as failure:
                wait_s = tries.wait_after(failure)
                if wait_s is None:
                    self._forget_model_after(failure)
                    raise
            time.sleep(wait_s)


class _Source:
    """Where the streams of one call come from."""

    def __init__(self, client: Client, options: ChatOptions) -> None:
        self._client = client
        self._options = options

    def reopen(self, last_event_id: str) -> httpx2.Response:
        client = self._client
        request = client._resume_request(last_event_id, self._options)
        return client._retrying(lambda: client._send(request), client._resume_tries())

    def cancel(self, completion_id: str) -> None:
        with connection_errors(self._client.base_url):
            self._client._http.send(self._client._cancel_request(completion_id))
