"""Requests to /v1/responses, in OpenAI's format."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.chat.request import MAX_TOKENS, Hint, Metadata, ServiceTier
from llava_server.api.compatibility.responses import RESPONSES
from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.extensions import ExtensionFields
from llava_server.api.fields.json_schema import Schema
from llava_server.api.fields.messages import FunctionName
from llava_server.api.fields.stop import StopFields
from llava_server.api.fields.tools import MAX_TOOLS
from llava_server.api.responses.input_items import Input, Item, ItemReference, MessageItem

__all__ = ["ResponseRequest", "ResponseTool"]

_LOGPROBS = "message.output_text.logprobs"
# Additional data that other servers return for tools and reasoning, which the model does not have.
_NO_DATA = {
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
}


class ResponseTool(RequestModel):
    """A function that the model can call and the client runs."""

    type: Literal["function"] = Field(description='Must be "function".')
    name: FunctionName = Field(
        description="Name of the function: up to 64 letters, digits, underscores and hyphens.",
        examples=["get_weather"],
    )
    description: str | None = Field(
        None,
        description="Describes what the function does. Included in the prompt.",
        examples=["Get the current weather in a city."],
    )
    parameters: Schema | None = Field(
        None,
        description="JSON schema of the arguments, at most 64 KiB without descriptions. Its type must "
        'be "object".',
        examples=[{"type": "object"}],
    )
    strict: bool | None = Field(
        None,
        description="Whether to reject the request if the schema contains keywords that cannot be enforced. "
        "Defaults to false: such keywords are only described to the model. All others are always enforced.",
    )


class ResponseTextFormat(RequestModel):
    """The format of the text output."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Type of output.")
    name: str | None = Field(
        None,
        description="Name of the schema: up to 64 letters, digits, underscores and hyphens.",
        examples=["scene"],
    )
    schema_: Schema | None = Field(
        None,
        alias="schema",
        description="JSON schema, at most 64 KiB without descriptions.",
        examples=[{"type": "object"}],
    )
    description: str | None = Field(
        None,
        description="Accepted for compatibility, but not included in the prompt.",
        examples=["The contents of the image."],
    )
    strict: bool | None = Field(
        None,
        description="Whether to reject the request if the schema contains keywords that cannot be enforced. "
        "Defaults to false: such keywords are ignored. All others are always enforced.",
    )


class TextOptions(RequestModel):
    """Options for the text output."""

    format: ResponseTextFormat | None = Field(
        None, description="Output format: plain text (default) or JSON, optionally with a schema."
    )


class ResponseStreamOptions(RequestModel):
    """Options for streaming."""

    include_usage: bool | None = Field(
        None, description="Accepted for compatibility, but the last event always contains the usage."
    )
    include_obfuscation: bool | None = Field(
        None, description="Accepted for compatibility, but the server never adds obfuscation."
    )


class ResponseRequest(RequestModel, ExtensionFields, StopFields):
    """A request to generate a response."""

    rules = RESPONSES

    model: str = Field(
        min_length=1,
        max_length=256,
        description="Model name, as listed by GET /v1/models.",
        examples=["tiny-llava"],
    )
    input: Input | None = Field(
        None,
        description="A string, or a list of items that make up the conversation so far, with the oldest "
        "item first. Required unless previous_response_id is set.",
        examples=["What can you do?"],
    )
    instructions: str | None = Field(
        None,
        description="System prompt. It is inserted as a system message before the input.",
        examples=["Answer in one word."],
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Maximum number of output tokens. Defaults to the remaining context length, which is "
        "also the upper limit.",
        examples=[128],
    )
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Number of most likely tokens to return at each position. Only allowed if include "
        "contains message.output_text.logprobs.",
        examples=[3],
    )
    include: list[str] | None = Field(
        None,
        max_length=16,
        fail_fast=True,
        description="Additional data to include in the response: message.output_text.logprobs. OpenAI's "
        "other values are accepted, but the response contains no data for them.",
        examples=[["message.output_text.logprobs"]],
    )
    stream: bool | None = Field(
        None, description="Whether to stream the response as server-sent events.", examples=[True]
    )
    stream_options: ResponseStreamOptions | None = Field(
        None, description="Options for streaming. Only allowed if stream is true."
    )
    text: TextOptions | None = Field(None, description="Options for the text output.")
    tools: list[ResponseTool] | None = Field(
        None,
        max_length=MAX_TOOLS,
        fail_fast=True,
        description=f"Functions that the model may call. At most {MAX_TOOLS}.",
        examples=[[{"type": "function", "name": "get_weather"}]],
    )
    tool_choice: Any = Field(
        None,
        description='"auto" (default), "none", "required", a function in the form {type, name}, or a subset '
        'of the tools in the form {type, mode, tools} with the type "allowed_tools".',
        examples=["auto"],
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Whether the output may contain multiple calls (at most 16). Defaults to true."
    )
    service_tier: ServiceTier | None = Field(
        None,
        description='"flex" requests are scheduled after "default" requests, and "priority" requests before '
        "them. The tier is limited to the maximum of the API key, which also applies to all other values. "
        "The response contains the tier that was used.",
    )
    metadata: Metadata | None = Field(
        None,
        description="Up to 16 key-value pairs, which are returned with the response. Keys can be up to 64 "
        "characters long, and values up to 512 characters.",
        examples=[{"run": "7"}],
    )
    user: Hint | None = Field(
        None,
        description="Accepted for compatibility, but ignored. At most 1024 characters.",
        examples=["user-7"],
    )
    safety_identifier: Hint | None = Field(
        None,
        description="Accepted for compatibility, but ignored. At most 1024 characters.",
        examples=["user-7"],
    )
    prompt_cache_key: Hint | None = Field(
        None,
        description="Accepted for compatibility, but ignored. At most 1024 characters.",
        examples=["album-3"],
    )
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        None, description="Accepted for compatibility."
    )
    store: bool | None = Field(
        None,
        description="Whether the response can be retrieved with GET /v1/responses/{id} and continued with "
        "previous_response_id. Defaults to true. If it is not set and the input is too large to be stored, "
        "the response is not stored.",
        examples=[True],
    )
    background: bool | None = Field(
        None,
        description='Whether to immediately return a response with the status "queued" and generate its '
        "output in the background, even if no client reads it. Not allowed if store is false.",
        examples=[True],
    )
    previous_response_id: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="ID of a stored response to continue. Its input and output, and those of all responses "
        "that it continues, precede the input. Its instructions are not used.",
        examples=[None],
    )

    @field_validator("include")
    @classmethod
    def _check_include(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if name != _LOGPROBS and name not in _NO_DATA:
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "include only supports {supported}. Remove {received}.",
                    {"supported": _LOGPROBS, "received": ascii(name[:64])},
                )
        return value

    @property
    def items(self) -> list[Item]:
        """The items of the input. A string is a message of the user."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input or []

    @property
    def has_references(self) -> bool:
        """Whether the request refers to stored items."""
        has_items = any(isinstance(item, ItemReference) for item in self.items)
        return self.previous_response_id is not None or has_items

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to return at each position.

        None if log probabilities are not requested.
        """
        return (self.top_logprobs or 0) if _LOGPROBS in (self.include or ()) else None

    @model_validator(mode="after")
    def _check_fields(self) -> ResponseRequest:
        if self.input is None and self.previous_response_id is None:
            raise PydanticCustomError(
                "missing",
                "input is required unless previous_response_id is set",
                {"fields": ("input",)},
            )
        if self.stream_options is not None and not self.stream:
            raise invalid_value("stream_options", "stream_options is only allowed if stream is true.")
        if self.background and self.store is False:
            raise invalid_value(
                "background",
                "background is not allowed if store is false, because the response could not be retrieved "
                "later.",
            )
        if self.top_logprobs and self.num_logprobs is None:
            raise invalid_value(
                "top_logprobs", f"top_logprobs is only allowed if include contains {_LOGPROBS!r}."
            )
        return self
