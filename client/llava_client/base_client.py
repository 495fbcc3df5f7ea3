"""The base class of both clients: settings, requests, retries and the default model. Does no I/O."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import httpx2

from llava_client.chat_request import CHAT_PATH, ChatOptions, completion_path
from llava_client.connection import Connection
from llava_client.endpoints import ApiRequest
from llava_client.errors import APIStatusError, LlavaError
from llava_client.json_body import JSON_HEADERS, encode_json
from llava_client.retries import RetryPolicy, RetryState

__all__ = ["DEFAULT_MAX_RETRIES", "DEFAULT_TIMEOUT", "BaseClient"]

# A slow server may send no data for minutes, but any running server accepts connections within seconds.
DEFAULT_TIMEOUT = httpx2.Timeout(600.0, connect=5.0)
DEFAULT_MAX_RETRIES = 2
_CANCEL_TIMEOUT_S = 2.0  # short, because the caller waits for the stream to close

Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient)


class BaseClient(Generic[Http]):
    """Builds requests and caches the default model, which is used if the caller does not specify one."""

    def __init__(
        self,
        connection: Connection,
        http: Http,
        *,
        timeout: float | httpx2.Timeout,
        max_retries: int,
        retry_policy: RetryPolicy | None,
    ) -> None:
        self._connection = connection
        self._http: Http = http
        self._timeout = httpx2.Timeout(timeout)
        self._max_retries = max_retries
        self._retry_policy = retry_policy or RetryPolicy()
        self._default_model: str | None = None

    @property
    def base_url(self) -> str:
        """The server's URL, without ``/v1``."""
        return self._connection.base_url

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r})"

    def _new_retries(self) -> RetryState:
        return RetryState(self._retry_policy, self._max_retries)

    def _request(self, api_request: ApiRequest[Any]) -> httpx2.Request:
        content = api_request.content()
        headers = {**self._connection.headers, **content.pop("headers", {})}
        return self._http.build_request(
            api_request.method,
            self._connection.url(api_request.path),
            headers=headers,
            timeout=self._timeout,
            **content,
        )

    def _retries_for(self, api_request: ApiRequest[Any]) -> RetryState:
        return RetryState(self._retry_policy, self._max_retries if api_request.is_retryable else 0)

    def _chat_request(
        self, body: Mapping[str, Any], options: ChatOptions, *, is_stream: bool
    ) -> httpx2.Request:
        if is_stream:
            body = {"stream_options": {"include_usage": True}, **body, "stream": True}
        key = options.get("idempotency_key") or str(uuid.uuid4())
        return self._http.build_request(
            "POST",
            self._connection.url(CHAT_PATH),
            content=encode_json(body),
            headers={**self._connection.headers, **JSON_HEADERS, "Idempotency-Key": key},
            timeout=self._read_timeout(options),
        )

    def _resume_request(self, last_event_id: str, options: ChatOptions) -> httpx2.Request:
        """Build the request that resumes a stream after the event ``last_event_id``."""
        return self._http.build_request(
            "GET",
            self._connection.url(completion_path(last_event_id.rpartition(":")[0])),
            params={"stream": "true", "include_usage": "true"},
            headers={**self._connection.headers, "Last-Event-ID": last_event_id},
            timeout=self._read_timeout(options),
        )

    def _cancel_request(self, completion_id: str) -> httpx2.Request:
        return self._http.build_request(
            "DELETE",
            self._connection.url(completion_path(completion_id)),
            headers=self._connection.headers,
            timeout=_CANCEL_TIMEOUT_S,
        )

    def _resume_retries(self) -> RetryState:
        """Allow three times as many retries as usual, because a server restart takes several seconds."""
        return RetryState(self._retry_policy, self._max_retries * 3)

    def _read_timeout(self, options: ChatOptions) -> httpx2.Timeout:
        timeout = options.get("timeout")
        return self._timeout if timeout is None else httpx2.Timeout(timeout)

    def _reset_model_after(self, failure: LlavaError) -> None:
        """Clear the cached default model if ``failure`` means that the server no longer offers it."""
        if isinstance(failure, APIStatusError) and failure.status_code == 404:
            self._default_model = None
