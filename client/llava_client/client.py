"""``Client``: the blocking shell.

Building requests, reading responses, understanding streams and deciding about retries happen in modules
without input or output; only the waiting is here and, awaited, in ``async_client``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from .base_client import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT, BaseClient
from .connection import Connection
from .conversation import Conversation
from .errors import LlavaError, connection_errors, status_error
from .images import Images
from .request import ChatOptions, chat_body
from .response import read_answer, read_default_model, read_models
from .retries import RetryPolicy, Tries
from .stream import Stream
from .types import Answer, Model

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
        return self._retrying(lambda: read_models(self._http.send(self._models_request())))

    def conversation(self, *, image: Images = None, **options: Unpack[ChatOptions]) -> Conversation:
        """A talk of several turns with the same options; ``image`` goes with the first question."""
        return Conversation(self, image=image, options=options)

    def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        if "model" not in body:
            if self._default_model is None:
                self._default_model = self._retrying(
                    lambda: read_default_model(self._http.send(self._models_request()))
                )
            body["model"] = self._default_model
        return body

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
