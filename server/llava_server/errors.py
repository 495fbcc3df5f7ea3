"""Every error code of this server, with its HTTP status. ``error_response.py`` has the bodies.

A code is for programs and never changes its status; the message of an ApiError is for people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llava_wire.errors import DuplicateJob, QueueFull, QueueUnavailable, StoreFull, TenantOverLimit
from llava_wire.messages.event import ErrorCode, JobError

__all__ = [
    "ERRORS",
    "ApiError",
    "ErrorKind",
    "ErrorType",
    "answer_not_found",
    "error_headers",
    "from_job_error",
    "from_store_error",
    "from_wire_error",
]

ErrorType = Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]


@dataclass(frozen=True)
class ErrorKind:
    """What a code means over HTTP. ``should_retry`` None leaves the choice to the client's own rules."""

    status: int
    type: ErrorType
    should_retry: bool | None = None


_INVALID: ErrorType = "invalid_request_error"
_SERVER: ErrorType = "server_error"

ERRORS: dict[str, ErrorKind] = {
    # what the client said
    "invalid_json": ErrorKind(400, _INVALID),
    "invalid_value": ErrorKind(400, _INVALID),
    "invalid_type": ErrorKind(400, _INVALID),
    "missing_required_parameter": ErrorKind(400, _INVALID),
    "unsupported_parameter": ErrorKind(400, _INVALID),
    "unsupported_content": ErrorKind(400, _INVALID),
    "invalid_image_url": ErrorKind(400, _INVALID),
    "invalid_image": ErrorKind(400, _INVALID),
    "image_too_large": ErrorKind(400, _INVALID),
    "too_many_images": ErrorKind(400, _INVALID),
    "context_length_exceeded": ErrorKind(400, _INVALID),
    "invalid_request": ErrorKind(400, _INVALID),
    "order_refused": ErrorKind(400, _INVALID),
    "invalid_api_key": ErrorKind(401, "authentication_error"),
    "model_not_found": ErrorKind(404, _INVALID),
    "answer_not_found": ErrorKind(404, _INVALID),
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
    # how busy we are
    "rate_limit_exceeded": ErrorKind(429, "rate_limit_error"),
    "too_many_files": ErrorKind(429, "rate_limit_error", should_retry=False),
    "storage_full": ErrorKind(503, _SERVER),
    "queue_full": ErrorKind(503, _SERVER),
    "overloaded": ErrorKind(503, _SERVER),
    "no_worker": ErrorKind(503, _SERVER),
    "queue_unavailable": ErrorKind(503, _SERVER),
    "shutting_down": ErrorKind(503, _SERVER),
    "worker_outdated": ErrorKind(503, _SERVER, should_retry=True),
    "queue_timeout": ErrorKind(408, _SERVER, should_retry=True),
    # what went wrong behind the door; a retry would do the same work and fail again
    "deadline_exceeded": ErrorKind(504, _SERVER, should_retry=False),
    "insufficient_memory": ErrorKind(503, _SERVER, should_retry=False),
    "worker_crashed": ErrorKind(500, _SERVER, should_retry=False),
    "load_failed": ErrorKind(500, _SERVER, should_retry=False),
    "internal_error": ErrorKind(500, _SERVER),
}


class ApiError(Exception):
    """An answer that is an error. ``message`` says what, the value, the limit and the way out."""

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
    """Headers that tell a client what to do: when to come again, or not to."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(round(error.retry_after_s * 1000))
    if error.kind.should_retry is not None:
        headers["x-should-retry"] = "true" if error.kind.should_retry else "false"
    if error.kind.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def answer_not_found() -> ApiError:
    """No answer of this id is kept for this key."""
    return ApiError("answer_not_found", "there is no such answer of this key, or its minutes are over")


def from_job_error(error: JobError, field: str) -> ApiError:
    """A worker's failure as an answer; every ErrorCode of the wire is a code of this table. ``field`` of the
    request is what the job was made of."""
    is_about_input = error.code in (ErrorCode.CONTEXT_LENGTH_EXCEEDED, ErrorCode.INVALID_REQUEST)
    param = error.param or (field if is_about_input else None)
    return ApiError(error.code.value, error.message, param=param)


def from_wire_error(error: DuplicateJob | QueueFull | TenantOverLimit | QueueUnavailable) -> ApiError:
    """What the queue refused, or that it cannot be reached."""
    if isinstance(error, DuplicateJob):
        return ApiError(
            "idempotency_conflict",
            "this Idempotency-Key was used for another request: use a new one for each request",
        )
    if isinstance(error, TenantOverLimit):
        return ApiError("rate_limit_exceeded", str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, QueueFull):
        return ApiError("queue_full", str(error), retry_after_s=error.retry_after_s)
    return ApiError("queue_unavailable", "the job queue cannot be reached", retry_after_s=error.retry_after_s)


def from_store_error(error: StoreFull | QueueUnavailable) -> ApiError:
    """What the store of files and batches refused, or that it cannot be reached."""
    if isinstance(error, QueueUnavailable):
        return from_wire_error(error)
    if error.is_own:
        return ApiError("too_many_files", str(error))
    return ApiError("storage_full", str(error), retry_after_s=60.0)
