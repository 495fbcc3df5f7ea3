"""Every error this server can answer, in one table, and the one shape in which it is said.

A code is for programs and never changes its status; the sentence beside it is for people. The body is
OpenAI's: ``{"error": {"message", "type", "param", "code", "request_id", "doc"}}``, plus ``retry_after_ms``
where waiting helps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from llava_wire.errors import DuplicateJob, QueueFull, QueueUnavailable, StoreFull, TenantOverLimit
from llava_wire.messages.event import ErrorCode, JobError

__all__ = [
    "ERRORS",
    "ApiError",
    "ErrorKind",
    "anthropic_body",
    "answer_not_found",
    "error_bytes",
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
_PAGE = "docs/errors.md"  # a section for each code

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

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

    def body(self, request_id: str | None) -> dict[str, Any]:
        """The OpenAI-shaped body."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.kind.type,
            "param": self.param,
            "code": self.code,
            "request_id": request_id,
            "doc": f"{_PAGE}#{self.code}",
        }
        if self.retry_after_s is not None:
            error["retry_after_ms"] = round(self.retry_after_s * 1000)
        return {"error": error}


def error_bytes(error: ApiError, request_id: str | None, *, is_anthropic: bool = False) -> bytes:
    """The body as compact JSON in UTF-8."""
    body = error.body(request_id)
    body = anthropic_body(body) if is_anthropic else body
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def anthropic_body(body: dict[str, Any]) -> dict[str, Any]:
    """The same body as Anthropic's clients read it; what they do not know stays beside."""
    error = body["error"]
    kind = _ANTHROPIC_TYPES.get(ERRORS[error["code"]].status, "api_error")
    is_about_input = 400 <= ERRORS[error["code"]].status < 500
    kind = "invalid_request_error" if kind == "api_error" and is_about_input else kind
    return {"type": "error", "error": {**error, "type": kind}, "request_id": error["request_id"]}


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
