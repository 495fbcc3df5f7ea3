"""The request of /v1/responses, in OpenAI's shape, and the chat that it comes to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.chat.request import MAX_TOKENS, Hint, Metadata
from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.messages import FunctionName
from llava_server.api.fields.structured_output import Schema
from llava_server.api.fields.unsupported import Unsupported
from llava_server.api.responses.input_items import Input

__all__ = ["ResponseRequest", "ResponseTool"]

_LOGPROBS = "message.output_text.logprobs"
_MAX_TOOLS = 128
_NOT_STORED = "send the whole conversation as input: conversations are not stored"
_TEXT_ONLY = "this model reads text and pictures and writes text"


class ResponseTool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"] = Field(description="function; there are no other kinds here.")
    name: FunctionName = Field(description="Letters, digits, _ and -, at most 64.", examples=["get_weather"])
    description: str | None = Field(
        None,
        max_length=4096,
        description="What it does, for the model, at most 4096 characters.",
        examples=["The weather in a city."],
    )
    parameters: Schema | None = Field(
        None,
        description="Its arguments as a JSON schema of type object, at most 64 KiB.",
        examples=[{"type": "object"}],
    )
    strict: bool | None = Field(None, description="Accepted; every call keeps to its schema.")


class ResponseTextFormat(RequestModel):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Of which kind it is.")
    name: str | None = Field(
        None, description="The schema's name, 1 to 64 letters, digits, _ and -.", examples=["scene"]
    )
    schema_: Schema | None = Field(
        None, alias="schema", description="A JSON schema of at most 64 KiB.", examples=[{"type": "object"}]
    )
    description: str | None = Field(
        None,
        description="Accepted; the model's prompt is left as it is.",
        examples=["What is in the picture."],
    )
    strict: bool | None = Field(None, description="Accepted; every answer keeps to the schema.")


class TextOptions(RequestModel):
    """How the text shall be."""

    format: ResponseTextFormat | None = Field(
        None, description="Free text (default), JSON, or JSON of a schema."
    )
    verbosity: Literal["medium"] | None = Field(
        None, description="Only medium: ask for a short or a long answer in the input."
    )


class ResponseStreamOptions(RequestModel):
    """How to stream."""

    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is obfuscated.")


class ResponseRequest(RequestModel):
    """A conversation to be answered, in the words of the Responses API."""

    model: str = Field(
        min_length=1, max_length=256, description="A model of GET /v1/models.", examples=["tiny-llava"]
    )
    input: Input = Field(
        description="A question, or the conversation so far as a list of items, oldest first.",
        examples=["What can you do?"],
    )
    instructions: str | None = Field(
        None,
        description="What the model shall keep in mind: a system message before the input.",
        examples=["Answer in one word."],
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Tokens of the answer at most; default and bound: the rest of the model's context.",
        examples=[128],
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 takes the likeliest token; default 1.", examples=[0]
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens of this mass; default 1.", examples=[1]
    )
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="So many of the likeliest tokens at each place; only with message.output_text.logprobs "
        "in include.",
        examples=[3],
    )
    include: list[str] | None = Field(
        None,
        max_length=16,
        description="message.output_text.logprobs tells log-probabilities; nothing else is there to be told.",
        examples=[["message.output_text.logprobs"]],
    )
    stream: bool | None = Field(
        None, description="Send events as they come, with OpenAI's names.", examples=[True]
    )
    stream_options: ResponseStreamOptions | None = Field(None, description="Only with stream true.")
    text: TextOptions | None = Field(None, description="What the text must be.")
    tools: list[ResponseTool] | None = Field(
        None,
        max_length=_MAX_TOOLS,
        description=f"Functions that the model may call, at most {_MAX_TOOLS}.",
        examples=[[{"type": "function", "name": "get_weather"}]],
    )
    tool_choice: Any = Field(
        None,
        description="auto (default), none, required, a function as {type, name}, or allowed_tools as "
        "{type, mode, tools}.",
        examples=["auto"],
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Whether one answer may make several calls (at most 16); default true."
    )
    service_tier: Literal["auto", "default", "flex", "priority"] | None = Field(
        None, description="priority goes before, flex behind other requests; auto and default are the same."
    )
    metadata: Metadata | None = Field(
        None,
        description="Up to 16 pairs, keys of at most 64 and values of at most 512 characters; given back "
        "with the answer.",
        examples=[{"run": "7"}],
    )
    user: Hint | None = Field(
        None, description="Accepted as a hint, at most 1024 characters.", examples=["user-7"]
    )
    safety_identifier: Hint | None = Field(
        None, description="Accepted as a hint, at most 1024 characters.", examples=["user-7"]
    )
    prompt_cache_key: Hint | None = Field(
        None, description="Accepted as a hint, at most 1024 characters.", examples=["album-3"]
    )
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        None, description="Accepted as a hint."
    )
    store: bool | None = Field(
        None,
        description="Unless false, GET /v1/responses/{id} gives the response while it is made and for five "
        "minutes after.",
        examples=[True],
    )
    background: bool | None = Field(
        None,
        description="Answer at once with a queued response, which is made whether or not anybody reads it; "
        "not with store false.",
        examples=[True],
    )
    previous_response_id: Annotated[Any, Unsupported(_NOT_STORED)] = None
    conversation: Annotated[Any, Unsupported(_NOT_STORED)] = None
    background_options: Annotated[Any, Unsupported("leave it out", ({},))] = None
    max_tool_calls: Annotated[
        Any, Unsupported("it counts calls of tools that a server runs, and this one runs none")
    ] = None
    prompt: Annotated[Any, Unsupported("send the text as input: templates are not stored")] = None
    reasoning: Annotated[
        Any, Unsupported("this model does not think before it answers", ({}, {"effort": "none"}))
    ] = None
    truncation: Annotated[Any, Unsupported("shorten input yourself; it is never cut here", ("disabled",))] = (
        None
    )
    context_management: Annotated[Any, Unsupported("shorten input yourself; it is never cut here", ([],))] = (
        None
    )
    moderation: Annotated[Any, Unsupported("judge texts on your side")] = None
    prompt_cache_options: Annotated[
        Any, Unsupported("leave it out: prompts are cached by their content", ({},))
    ] = None
    access_programs: Annotated[Any, Unsupported("leave it out")] = None
    image: Annotated[Any, Unsupported(_TEXT_ONLY)] = None
    modalities: Annotated[Any, Unsupported(_TEXT_ONLY, (["text"],))] = None

    @field_validator("include")
    @classmethod
    def _check_include(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if name != _LOGPROBS:
                raise PydanticCustomError(
                    "unsupported_parameter", "include can tell {known} and nothing else", {"known": _LOGPROBS}
                )
        return value

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives are told; None without log-probabilities."""
        return (self.top_logprobs or 0) if _LOGPROBS in (self.include or ()) else None

    @model_validator(mode="after")
    def _check_fields(self) -> ResponseRequest:
        if self.stream_options is not None and not self.stream:
            raise invalid_value("stream_options", "stream_options is only allowed with stream true")
        if self.background and self.store is False:
            raise invalid_value(
                "background", "background is not allowed with store false: nobody could read it"
            )
        if self.top_logprobs and self.num_logprobs is None:
            raise invalid_value("top_logprobs", f"top_logprobs is only allowed with include [{_LOGPROBS!r}]")
        return self
