"""The error codes of this server and their HTTP statuses. ``error_response.py`` defines the bodies.

Programs can rely on the code, which always has the same HTTP status. The message is for human readers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llava_wire.errors import (
    DuplicateJob,
    ImageStoreUnavailable,
    QueueFull,
    QueueUnavailable,
    StoreFull,
    TenantOverLimit,
)
from llava_wire.messages.event import ErrorCode, JobError

__all__ = [
    "ERRORS",
    "ApiError",
    "ErrorKind",
    "ErrorType",
    "error_headers",
    "from_job_error",
    "from_store_error",
    "from_wire_error",
    "queue_unavailable",
    "response_not_found",
]

ErrorType = Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]


@dataclass(frozen=True)
class ErrorKind:
    """The HTTP status and type of an error code.

    ``should_retry`` is sent in the ``x-should-retry`` header. If it is None, the header is omitted and the
    client decides whether to retry.
    """

    status: int
    type: ErrorType
    should_retry: bool | None = None


_INVALID: ErrorType = "invalid_request_error"
_SERVER: ErrorType = "server_error"

ERRORS: dict[str, ErrorKind] = {
    # invalid requests
    "invalid_json": ErrorKind(400, _INVALID),
    "invalid_value": ErrorKind(400, _INVALID),
    "invalid_type": ErrorKind(400, _INVALID),
    "missing_required_parameter": ErrorKind(400, _INVALID),
    "unsupported_parameter": ErrorKind(400, _INVALID),
    "unsupported_content": ErrorKind(400, _INVALID),
    "unsupported_operation": ErrorKind(400, _INVALID),
    "invalid_image_url": ErrorKind(400, _INVALID),
    "invalid_image": ErrorKind(400, _INVALID),
    "image_too_large": ErrorKind(400, _INVALID),
    "too_many_images": ErrorKind(400, _INVALID),
    "context_length_exceeded": ErrorKind(400, _INVALID),
    "invalid_request": ErrorKind(400, _INVALID),
    "order_refused": ErrorKind(400, _INVALID),
    "invalid_api_key": ErrorKind(401, "authentication_error"),
    "host_not_allowed": ErrorKind(403, _INVALID),
    "origin_not_allowed": ErrorKind(403, _INVALID),
    "model_not_found": ErrorKind(404, _INVALID),
    "answer_not_found": ErrorKind(404, _INVALID),
    "previous_response_not_found": ErrorKind(404, _INVALID),
    "item_not_found": ErrorKind(404, _INVALID),
    "file_not_found": ErrorKind(404, _INVALID),
    "batch_not_found": ErrorKind(404, _INVALID),
    "worker_not_found": ErrorKind(404, _INVALID),
    "unknown_url": ErrorKind(404, _INVALID),
    "method_not_allowed": ErrorKind(405, _INVALID),
    "request_timeout": ErrorKind(408, _INVALID),
    "idempotency_conflict": ErrorKind(409, _INVALID, should_retry=False),
    "stream_taken_over": ErrorKind(409, _INVALID, should_retry=False),
    "answer_cancelled": ErrorKind(409, _INVALID, should_retry=True),
    "batch_has_ended": ErrorKind(409, _INVALID, should_retry=False),
    "worker_has_order": ErrorKind(409, _INVALID, should_retry=True),
    "request_too_large": ErrorKind(413, _INVALID),
    "unsupported_media_type": ErrorKind(415, _INVALID),
    "unsupported_encoding": ErrorKind(415, _INVALID),
    # load and limits
    "rate_limit_exceeded": ErrorKind(429, "rate_limit_error"),
    "too_many_files": ErrorKind(429, "rate_limit_error", should_retry=False),
    "storage_full": ErrorKind(503, _SERVER),
    "queue_full": ErrorKind(503, _SERVER),
    "overloaded": ErrorKind(503, _SERVER),
    "no_worker": ErrorKind(503, _SERVER),
    "queue_unavailable": ErrorKind(503, _SERVER),
    "shutting_down": ErrorKind(503, _SERVER),
    "worker_outdated": ErrorKind(503, _SERVER, should_retry=True),
    "model_changed": ErrorKind(503, _SERVER, should_retry=True),
    "queue_timeout": ErrorKind(408, _SERVER, should_retry=True),
    # system failures, most of which would recur on a retry
    "deadline_exceeded": ErrorKind(504, _SERVER, should_retry=False),
    "insufficient_memory": ErrorKind(503, _SERVER, should_retry=False),
    "worker_crashed": ErrorKind(500, _SERVER, should_retry=False),
    "load_failed": ErrorKind(500, _SERVER, should_retry=False),
    "internal_error": ErrorKind(500, _SERVER),
}


class ApiError(Exception):
    """An error that is returned to the client.

    ``message`` states what happened, gives the invalid value and the limit, and explains how to fix it.
    """

    def __init__(
        self, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = ERRORS[code]
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


def error_headers(error: ApiError) -> dict[str, str]:
    """Return the response headers that specify how to authenticate, how to encode and when to retry."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(round(error.retry_after_s * 1000))
    if error.kind.should_retry is not None:
        headers["x-should-retry"] = "true" if error.kind.should_retry else "false"
    if error.kind.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.code == "unsupported_encoding":
        headers["accept-encoding"] = "identity"
    return headers


def response_not_found() -> ApiError:
    """Return the error for a response ID that is unknown or belongs to a different API key."""
    return ApiError(
        "answer_not_found", "The response does not exist, belongs to a different API key, or has expired."
    )


def from_job_error(error: JobError, field: str) -> ApiError:
    """Convert an error that a worker reported.

    Every ErrorCode of the wire protocol is also defined in ``ERRORS``.

    ``field`` is the name of the request field that contains the prompt.
    """
    is_about_input = error.code in (ErrorCode.CONTEXT_LENGTH_EXCEEDED, ErrorCode.INVALID_REQUEST)
    param = error.param or (field if is_about_input else None)
    return ApiError(error.code.value, error.message, param=param)


def from_wire_error(error: DuplicateJob | QueueFull | TenantOverLimit | QueueUnavailable) -> ApiError:
    """Return the error for a job that the queue rejected."""
    if isinstance(error, DuplicateJob):
        return ApiError(
            "idempotency_conflict",
            "This Idempotency-Key was already used for a different request. Use a new key for each request.",
        )
    if isinstance(error, TenantOverLimit):
        return ApiError("rate_limit_exceeded", str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, QueueFull):
        return ApiError("queue_full", str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, ImageStoreUnavailable):
        message = "The image store is unavailable. Retry, or send the request without images."
        return ApiError("queue_unavailable", message, retry_after_s=error.retry_after_s)
    return queue_unavailable(error.retry_after_s)


def queue_unavailable(retry_after_s: float) -> ApiError:
    """Return the error for a request that needs the job queue while Redis is unavailable."""
    return ApiError("queue_unavailable", "The job queue is unavailable. Retry.", retry_after_s=retry_after_s)


def from_store_error(error: StoreFull | QueueUnavailable) -> ApiError:
    """Return the error for a file or batch that the store rejected."""
    if isinstance(error, QueueUnavailable):
        return from_wire_error(error)
    if error.is_own:
        return ApiError("too_many_files", str(error), retry_after_s=60.0)
    return ApiError("storage_full", str(error), retry_after_s=60.0)
