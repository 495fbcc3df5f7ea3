"""The bodies of error responses, in OpenAI's and in Anthropic's form."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from llava_server.errors import ERRORS, ApiError, ErrorType
from llava_server.response_model import ResponseModel, doc

__all__ = ["Error", "ErrorDetail", "MessageError", "MessageErrorDetail", "to_error", "to_message_error"]

AnthropicErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "overloaded_error",
    "timeout_error",
    "api_error",
]
_ANTHROPIC_TYPES: dict[int, AnthropicErrorType] = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_PAGE = "docs/errors.md"  # a section for each code
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
    doc("The id in this server's log, as in x-request-id.", _EXAMPLE["request_id"]),
]
RetryAfterMs = Annotated[int, Meta(ge=0, le=86_400_000)]


class ErrorFields(ResponseModel, kw_only=True):
    """What both forms report, in their order."""

    message: Annotated[str, doc("For people: what, the value, the limit.", _EXAMPLE["message"])]
    type: str
    param: Annotated[str | None, doc("The field that is to blame.", "top_p")]
    code: Annotated[
        str,
        doc(
            "For programs; never changes its status. docs/errors.md has a section for each.",
            _EXAMPLE["code"],
            extra_json_schema={"enum": sorted(ERRORS)},
        ),
    ]
    request_id: RequestId
    doc: Annotated[str, doc("The page that says more.", _EXAMPLE["doc"])]
    retry_after_ms: Annotated[
        RetryAfterMs | UnsetType,
        doc("When to come again, milliseconds; only where waiting helps.", 1500),
    ] = UNSET


class ErrorDetail(ErrorFields, kw_only=True):
    """What is wrong."""

    type: Annotated[ErrorType, doc("The kind of error, in OpenAI's words.", _EXAMPLE["type"])]


class Error(ResponseModel):
    """Why there is no answer."""

    error: Annotated[ErrorDetail, doc("The error.", _EXAMPLE)]


class MessageErrorDetail(ErrorFields, kw_only=True):
    """What is wrong, its kind in Anthropic's words."""

    type: Annotated[
        AnthropicErrorType, doc("The kind of error, in Anthropic's words.", "invalid_request_error")
    ]


class MessageError(ResponseModel, kw_only=True):
    """Why there is no message; in a stream the last event."""

    type: Literal["error"] = "error"
    error: Annotated[MessageErrorDetail, doc("The error.", _EXAMPLE)]
    request_id: RequestId


def to_error(error: ApiError, request_id: str | None) -> Error:
    """Return the body in OpenAI's form."""
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
    """Return the body in Anthropic's form; fields that Anthropic does not have are added to it."""
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
        ),
        request_id=request_id,
    )
