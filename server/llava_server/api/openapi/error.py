"""Why there is no answer, in OpenAI's shape and in Anthropic's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llava_server.api.openapi.schema import Shape, absent
from llava_server.errors import ERRORS, ErrorType

__all__ = ["Error", "MessageError"]

_KIND, _CODE = "invalid_request_error", "invalid_value"  # of both dialects
_EXAMPLE = {
    "message": "top_p: input should be less than or equal to 1 (got 2)",
    "type": _KIND,
    "param": "top_p",
    "code": _CODE,
    "request_id": "req-9855bf8261138516bd52469d",
    "doc": f"docs/errors.md#{_CODE}",
}
_MAX_WAIT_MS = 86_400_000
RequestId = Annotated[str, Field(max_length=64)]


class ErrorFields(Shape):
    """What both shapes say."""

    message: str = Field(
        description="For people: what, the value, the limit.",
        examples=[_EXAMPLE["message"]],
    )
    param: str | None = Field(description="The field that is to blame.", examples=["top_p"])
    code: str = Field(
        description="For programs; never changes its status. docs/errors.md has a section for each.",
        examples=[_CODE],
        json_schema_extra={"enum": [*sorted(ERRORS)]},
    )
    request_id: RequestId | None = Field(
        description="The id in this server's log, as in x-request-id.",
        examples=[_EXAMPLE["request_id"]],
    )
    doc: str = Field(description="The page that says more.", examples=[_EXAMPLE["doc"]])
    retry_after_ms: int = Field(
        default_factory=absent,
        ge=0,
        le=_MAX_WAIT_MS,
        description="When to come again, milliseconds; only where waiting helps.",
        examples=[1500],
    )


class ErrorDetail(ErrorFields):
    """What is wrong."""

    type: ErrorType = Field(description="The kind of error, in OpenAI's words.", examples=[_KIND])


class Error(Shape):
    """Why there is no answer."""

    error: ErrorDetail = Field(description="The error.", examples=[_EXAMPLE])


class MessageErrorDetail(ErrorFields):
    """What is wrong, its kind in Anthropic's words."""

    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "overloaded_error",
        "timeout_error",
        "api_error",
    ] = Field(description="The kind of error, in Anthropic's words.")


class MessageError(Shape):
    """Why there is no message; in a stream the last event."""

    type: Literal["error"] = Field(description="error")
    error: MessageErrorDetail = Field(description="The error.", examples=[_EXAMPLE])
    request_id: RequestId | None = Field(
        description="The id in this server's log, as in x-request-id.",
        examples=[_EXAMPLE["request_id"]],
    )
