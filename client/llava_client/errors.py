"""The exceptions that this package raises, and functions that create them from HTTP responses.

LlavaError
├── ConfigurationError            invalid base URL (also a ValueError)
├── ImageError                    invalid image (also a ValueError); nothing was sent
├── APIConnectionError            no response: connection refused or reset, unknown host
│   ├── APITimeoutError           no response before the timeout
│   └── StreamInterrupted         stream ended early; ``text`` is the part received
└── APIError                      error from the server; raised directly for errors within a stream
    └── APIStatusError            response with an error status
        ├── BadRequestError           400
        ├── AuthenticationError       401
        ├── PermissionDeniedError     403
        ├── NotFoundError             404
        ├── ConflictError             409
        ├── RateLimitError            429
        └── InternalServerError       5xx
            └── ServiceUnavailableError   503
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "ConfigurationError",
    "ConflictError",
    "ImageError",
    "InternalServerError",
    "LlavaError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServiceUnavailableError",
    "StreamInterrupted",
    "api_error",
    "connection_errors",
    "parse_retry_after",
    "status_error",
]

_BODY_EXCERPT = 200  # maximum length of the excerpt of an unrecognized response body in an error message


class LlavaError(Exception):
    """The base class of this package's exceptions.

    Invalid arguments other than settings and images raise TypeError or ValueError.
    """


class ConfigurationError(LlavaError, ValueError):
    """A client setting is invalid. Raised when the client is created."""


class ImageError(LlavaError, ValueError):
    """An image cannot be read, or its format is not recognized. Raised before anything is sent."""


class APIConnectionError(LlavaError):
    """No response was received. ``__cause__`` is the exception raised by the HTTP library."""


class APITimeoutError(APIConnectionError):
    """The server sent no data for longer than ``timeout``. The client does not retry the request."""


class StreamInterrupted(APIConnectionError):
    """A stream ended before it was complete. ``text`` is the text received up to that point."""

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class APIError(LlavaError):
    """The server rejected the request or failed to process it.

    ``code`` is machine-readable. ``message`` is human-readable. ``request_id`` identifies the request in the
    server's logs. ``body`` is the decoded JSON of the response, or the response text if it is not JSON.
    """

    def __init__(self, message: str, *, body: object = None, request_id: str | None = None) -> None:
        super().__init__(message)
        fields = _error_fields(body)
        self.message = message
        self.body = body
        self.code: str | None = _text(fields.get("code"))
        self.param: str | None = _text(fields.get("param"))
        self.type: str | None = _text(fields.get("type"))
        self.request_id: str | None = request_id or _text(fields.get("request_id"))

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message


class APIStatusError(APIError):
    """A response with an error status.

    ``retry_after_s`` is the retry delay requested by the server, or None if it did not request one.
    ``should_retry`` indicates whether the server recommends a retry. It is None if the server made no
    recommendation.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        body: object = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, body=body, request_id=request_id)
        self.status_code = status_code
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry


class BadRequestError(APIStatusError):
    """400: the request is invalid; ``param`` names the field."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or not recognized."""


class PermissionDeniedError(APIStatusError):
    """403: the API key does not have permission."""


class NotFoundError(APIStatusError):
    """404: the model or resource does not exist."""


class ConflictError(APIStatusError):
    """409: the request conflicts with another request or with the current state."""


class RateLimitError(APIStatusError):
    """429: the API key has exceeded a limit, or the queue is full."""


class InternalServerError(APIStatusError):
    """5xx: the server failed."""


class ServiceUnavailableError(InternalServerError):
    """503: no worker or queue is currently available."""


_CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}
_SHOULD_RETRY = {"true": True, "false": False}


def status_error(response: httpx2.Response) -> APIStatusError:
    """Return the exception for an error response, whose body must have been read."""
    body = _decoded(response)
    default = InternalServerError if response.status_code >= 500 else APIStatusError
    return _CLASSES.get(response.status_code, default)(
        _message(body, fallback=f"HTTP {response.status_code} from {response.url}"),
        status_code=response.status_code,
        body=body,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=parse_retry_after(response.headers),
        should_retry=_SHOULD_RETRY.get(response.headers.get("x-should-retry", "")),
    )


def api_error(body: object, *, request_id: str | None = None) -> APIError:
    """Return the exception for an ``{"error": ...}`` object in a stream or a batch result."""
    return APIError(_message(body, fallback="The server reported an error"), body=body, request_id=request_id)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the delay in seconds from ``retry-after-ms`` or ``Retry-After``, or None if neither is valid."""
    if (ms := _non_negative(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    value = headers.get("retry-after")
    seconds = _non_negative(value)
    return seconds if seconds is not None else _seconds_until(value)


_REMEDY = (
    "Check that the server is running, and set base_url (--base-url or LLAVA_BASE_URL) to the URL that "
    "`llava-serve up` printed."
)


@contextmanager
def connection_errors(base_url: str) -> Iterator[None]:
    """Convert the HTTP library's exceptions into this package's exceptions."""
    import httpx2  # not above, because `llava-serve up` imports this module

    try:
        yield
    except httpx2.ConnectTimeout as exc:
        raise APIConnectionError(f"{base_url} did not accept a connection in time. {_REMEDY}") from exc
    except httpx2.TimeoutException as exc:
        raise APITimeoutError(f"{base_url} did not respond in time. Increase the timeout.") from exc
    except httpx2.ConnectError as exc:
        raise APIConnectionError(f"Cannot reach {base_url}: {exc}. {_REMEDY}") from exc
    except httpx2.RequestError as exc:
        reason = str(exc) or type(exc).__name__
        raise APIConnectionError(f"Cannot reach {base_url}: {reason}.") from exc


def _decoded(response: httpx2.Response) -> object:
    try:
        return response.json()
    except ValueError:  # for example an HTML page from a proxy
        return response.text


def _error_fields(body: object) -> Mapping[str, Any]:
    error = body.get("error") if isinstance(body, Mapping) else None
    return error if isinstance(error, Mapping) else {}


def _message(body: object, *, fallback: str) -> str:
    if message := _text(_error_fields(body).get("message")):
        return message
    excerpt = " ".join(body.split())[:_BODY_EXCERPT] if isinstance(body, str) else ""
    return f"{fallback}: {excerpt}" if excerpt else f"{fallback}."


def _non_negative(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return number if number >= 0 else None


def _seconds_until(date: str | None) -> float | None:
    """Return the number of seconds until an HTTP date, or None if the date is invalid.

    RFC 9110 allows dates in ``Retry-After``.
    """
    try:
        when = email.utils.parsedate_to_datetime(date) if date else None
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time()) if when else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
