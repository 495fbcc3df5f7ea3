"""A response in the words of OpenAI's Responses API, whole or as far as it is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llava_server.api.chat.response import ServiceTier
from llava_server.api.openapi.schema import Moment, Shape, Tokens, absent
from llava_server.api.responses.response_items import MESSAGE_EXAMPLE, OutputItem

__all__ = ["Response"]

Temperature = Annotated[float, Field(ge=0, le=2)]
Mass = Annotated[float, Field(gt=0, le=1)]


class ResponseFailure(Shape):
    """Why a response has failed."""

    code: Literal["server_error"] = Field(description="server_error")
    message: str = Field(description="For people.", examples=["the worker of this request has crashed"])


class Incomplete(Shape):
    """Why a response is cut."""

    reason: Literal["max_output_tokens"] = Field(
        description="max_output_tokens: they or the context were used up."
    )


class InputTokens(Shape):
    """More about the input's tokens."""

    cached_tokens: Tokens = Field(description="Those that a worker had computed before.", examples=[576])
    cache_write_tokens: Literal[0] = Field(description="Always 0: caching costs nothing here.")


class OutputTokens(Shape):
    """More about the output's tokens."""

    reasoning_tokens: Literal[0] = Field(description="Always 0: the model does not think before it answers.")


class ResponseUsage(Shape):
    """The tokens that a response took."""

    input_tokens: Tokens = Field(
        description="Tokens of the prompt, a picture's places included.", examples=[612]
    )
    input_tokens_details: InputTokens = Field(description="What of them cost nothing.")
    output_tokens: Tokens = Field(description="Tokens of the output, its end mark included.", examples=[9])
    output_tokens_details: OutputTokens = Field(description="What they were for.")
    total_tokens: Tokens = Field(description="The sum of both.", examples=[621])


class ToldTool(Shape):
    """A function that the model might call, as it was sent."""

    type: Literal["function"] = Field(description="function")
    name: str = Field(description="Its name.", examples=["get_weather"])
    description: str = Field(
        default_factory=absent, description="What it does.", examples=["The weather in a city."]
    )
    parameters: dict[str, Any] | None = Field(
        description="Its arguments as a JSON schema; null where none was sent.",
        examples=[{"type": "object"}],
    )
    strict: bool | None = Field(description="As it was sent; every call keeps to its schema.")


class ToldFormat(Shape):
    """What the text had to be, as it was sent."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Of which kind it is.")
    name: str = Field(default_factory=absent, description="The schema's name.", examples=["scene"])
    schema_: dict[str, Any] = Field(
        default_factory=absent, alias="schema", description="The JSON schema.", examples=[{"type": "object"}]
    )
    description: str = Field(
        default_factory=absent, description="As it was sent.", examples=["What is in the picture."]
    )
    strict: bool = Field(default_factory=absent, description="As it was sent.")


class ToldText(Shape):
    """How the text had to be."""

    format: ToldFormat = Field(description="Free text, JSON, or JSON of a schema.")
    verbosity: Literal["medium"] = Field(default_factory=absent, description="As it was sent.")


class ToldReasoning(Shape):
    """How the model thought before it answered: not at all."""

    effort: None = Field(description="Always null.")
    summary: None = Field(description="Always null.")


class Response(Shape):
    """A response, with what it was asked with."""

    id: str = Field(
        description="Of the response: GET /v1/responses/{id} reads it again.",
        examples=["resp_3f1c09a2b44de8715a7c61f02b9d10ee"],
    )
    object: Literal["response"] = Field(description="response")
    created_at: Moment = Field(description="When it was asked for, Unix seconds.", examples=[1764241200])
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"] = Field(
        description="Where it stands; the last four are ends.", examples=["completed"]
    )
    output: list[OutputItem] = Field(
        description="What the model said and called, in its order, so far.", examples=[[MESSAGE_EXAMPLE]]
    )
    usage: ResponseUsage | None = Field(
        description="The tokens that it took; null until it is completed or incomplete."
    )
    error: ResponseFailure | None = Field(description="Why it has failed; else null.", examples=[None])
    incomplete_details: Incomplete | None = Field(description="Why it is cut; else null.", examples=[None])
    model: str = Field(description="The model that answers.", examples=["tiny-llava"])
    background: bool = Field(description="Whether it is made also if nobody reads it.")
    instructions: str | None = Field(description="As they were sent.", examples=["Answer in one word."])
    max_output_tokens: Tokens | None = Field(
        description="Tokens of the output at most; null: the rest of the context.", examples=[128]
    )
    metadata: dict[str, str] = Field(description="As they were sent; empty without.", examples=[{"run": "7"}])
    parallel_tool_calls: bool = Field(description="Whether it may make several calls.")
    previous_response_id: None = Field(description="Always null: conversations are not stored.")
    reasoning: ToldReasoning = Field(description="Empty: the model does not think before it answers.")
    service_tier: ServiceTier = Field(description="How the request stood in the queue.")
    store: bool = Field(description="Whether it can be read later.")
    temperature: Temperature = Field(description="What it is drawn with.", examples=[1])
    text: ToldText = Field(description="How the text has to be.")
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] = Field(
        description="As it was sent: a word, or one function or some as an object.", examples=["auto"]
    )
    tools: list[ToldTool] = Field(
        max_length=128, description="Functions that the model may call.", examples=[[]]
    )
    top_logprobs: int = Field(
        ge=0, le=20, description="How many of the likeliest tokens are told at each place.", examples=[0]
    )
    top_p: Mass = Field(description="The mass of the tokens that it is drawn from.", examples=[1])
    truncation: Literal["disabled"] = Field(description="Always disabled: the input is never cut.")
    user: str | None = Field(description="As it was sent.", examples=["user-7"])
