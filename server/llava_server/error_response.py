"""Error response bodies in the formats of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from llava_server.errors import ERRORS, ApiError, ErrorType
from llava_server.response_model import ResponseModel, doc

__all__ = [
    "Error",
    "ErrorDetail",
    "MessageError",
    "MessageErrorDetail",
    "OllamaError",
    "to_error",
    "to_message_error",
    "to_ollama_error",
]

AnthropicErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "overloaded_error",
    "timeout_error",
    "api_error",
]
_ANTHROPIC_TYPES: dict[int, AnthropicErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_PAGE = "docs/reference/errors.md"  # this page has one section per error code
_EXAMPLE = {
    "message": "top_p: input should be less than or equal to 1 (got 2)",
    "type": "invalid_request_error",
    "param": "top_p",
    "code": "invalid_value",
    "request_id": "req-9855bf8261138516bd52469d",
    "doc": f"{_PAGE}#invalid_value",
}
RequestId = Annotated[
    Annotated[str, Meta(max_length=64)] | None,
    doc(
        "The request ID, which is also in the server's log and in the X-Request-Id response header.",
        _EXAMPLE["request_id"],
    ),
]
RetryAfterMs = Annotated[int, Meta(ge=0, le=86_400_000)]


class ErrorFields(ResponseModel, kw_only=True):
    """The fields that both formats share, in the order in which they are serialized."""

    message: Annotated[
        str,
        doc(
            "A human-readable description of the error, with the invalid value and any limit.",
            _EXAMPLE["message"],
        ),
    ]
    type: str
    param: Annotated[str | None, doc("The request field that caused the error.", "top_p")]
    code: Annotated[
        str,
        doc(
            "A machine-readable error code. Each code always has the same HTTP status. All codes are "
            "described in docs/reference/errors.md.",
            _EXAMPLE["code"],
            extra_json_schema={"enum": sorted(ERRORS)},
        ),
    ]
    request_id: RequestId
    doc: Annotated[str, doc("The page and section that document this error code.", _EXAMPLE["doc"])]
    retry_after_ms: Annotated[
        RetryAfterMs | UnsetType,
        doc("Time to wait before retrying, in milliseconds. Omitted if a retry would not help.", 1500),
    ] = UNSET


class ErrorDetail(ErrorFields, kw_only=True):
    """The details of an error."""

    type: Annotated[ErrorType, doc("The error type, as defined by OpenAI.", _EXAMPLE["type"])]


class Error(ResponseModel):
    """An error response in OpenAI's format."""

    error: Annotated[ErrorDetail, doc("The error.", _EXAMPLE)]


class ThreadErrorDetails(ResponseModel, kw_only=True):
    """Asks Anthropic's clients to send the whole conversation instead of continuing a message thread."""

    error_code: Annotated[
        Literal["thread_unsupported_request"],
        doc('Always "thread_unsupported_request".', "thread_unsupported_request"),
    ] = "thread_unsupported_request"
    unsupported: Annotated[tuple[str, ...], doc("The fields to omit from the next request.", ["thread"])] = (
        "thread",
    )


class MessageErrorDetail(ErrorFields, kw_only=True):
    """The details of an error, with Anthropic's error type."""

    type: Annotated[
        AnthropicErrorType, doc("The error type, as defined by Anthropic.", "invalid_request_error")
    ]
    details: Annotated[
        ThreadErrorDetails | UnsetType,
        doc("Only set if param is thread. Anthropic's clients then send the request without it."),
    ] = UNSET


class MessageError(ResponseModel, kw_only=True):
    """An error response in Anthropic's format. In a stream, it is the last event."""

    type: Literal["error"] = "error"
    error: Annotated[MessageErrorDetail, doc("The error.", _EXAMPLE)]
    request_id: RequestId


class OllamaError(ResponseModel, kw_only=True):
    """An error response in Ollama's format, with this server's additional fields."""

    error: Annotated[
        str,
        doc(
            "A human-readable description of the error, with the invalid value and any limit.",
            _EXAMPLE["message"],
        ),
    ]
    param: Annotated[str | None, doc("The request field that caused the error.", "top_p")]
    code: Annotated[
        str,
        doc(
            "A machine-readable error code. Each code always has the same HTTP status. All codes are "
            "described in docs/reference/errors.md.",
            _EXAMPLE["code"],
            extra_json_schema={"enum": sorted(ERRORS)},
        ),
    ]
    request_id: RequestId


def to_error(error: ApiError, request_id: str | None) -> Error:
    """Return the response body in OpenAI's format."""
    return Error(
        ErrorDetail(
            message=error.message,
            type=error.kind.type,
            param=error.param,
            code=error.code,
            request_id=request_id,
            doc=f"{_PAGE}#{error.code}",
            retry_after_ms=UNSET if error.retry_after_s is None else round(error.retry_after_s * 1000),
        )
    )


def to_message_error(error: ApiError, request_id: str | None) -> MessageError:
    """Return the response body in Anthropic's format, with this server's additional fields."""
    status = error.kind.status
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")
    detail = to_error(error, request_id).error
    return MessageError(
        error=MessageErrorDetail(
            message=detail.message,
            type=kind,
            param=detail.param,
            code=detail.code,
            request_id=request_id,
            doc=detail.doc,
            retry_after_ms=detail.retry_after_ms,
            details=ThreadErrorDetails() if detail.param == "thread" else UNSET,
        ),
        request_id=request_id,
    )


def to_ollama_error(error: ApiError, request_id: str | None) -> OllamaError:
    """Return the response body in Ollama's format, or the last line of a failed stream."""
    return OllamaError(error=error.message, param=error.param, code=error.code, request_id=request_id)
