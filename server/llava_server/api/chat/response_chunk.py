"""A piece of a chat's streamed answer: chat.completion.chunk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.chat.logprobs import ChatLogprobs
from llava_server.api.chat.response import ChatHead, FinishReason
from llava_server.api.chat.usage import CompletionUsage
from llava_server.api.openapi.schema import Index, Shape, absent

__all__ = ["ChatCompletionChunk"]


class FunctionDelta(Shape):
    """More of a call."""

    name: str = Field(
        default_factory=absent,
        description="The function; only in the call's first piece.",
        examples=["get_weather"],
    )
    arguments: str = Field(description="More of the arguments; pieces are joined.", examples=['{"city":'])


class ToolCallDelta(Shape):
    """A call that begins, or more of it."""

    index: Index = Field(description="Which of the choice's calls, from 0.", examples=[0])
    id: str = Field(
        default_factory=absent,
        description="Names the call; only in its first piece.",
        examples=["call_0f3c5d2a91b84e6f7a10c2d4"],
    )
    type: Literal["function"] = Field(
        default_factory=absent, description="function; only in the call's first piece."
    )
    function: FunctionDelta = Field(description="More of it.")


class ChatDelta(Shape):
    """What is new; empty in a choice's last chunk."""

    role: Literal["assistant"] = Field(
        default_factory=absent, description="assistant; only in the choice's first chunk."
    )
    content: str = Field(default_factory=absent, description="More of the text.", examples=["A red"])
    tool_calls: list[ToolCallDelta] = Field(
        default_factory=absent,
        min_length=1,
        description="More of the calls.",
        examples=[[{"index": 0, "function": {"arguments": '{"city":'}}]],
    )


class ChunkChoice(Shape):
    """More of one choice."""

    index: Index = Field(description="The choice's number, from 0.", examples=[0])
    delta: ChatDelta = Field(description="What is new.", examples=[{"content": "A red"}])
    logprobs: ChatLogprobs | None = Field(
        description="Of the chunk's tokens; null unless asked for.", examples=[None]
    )
    finish_reason: FinishReason | None = Field(
        description="Why the choice ended, in its last chunk; null before.", examples=["stop"]
    )


class ChatCompletionChunk(ChatHead):
    """The data of one event, whose id is {id}:{tokens so far}, as Last-Event-ID takes it."""

    object: Literal["chat.completion.chunk"] = Field(description="chat.completion.chunk")
    choices: list[ChunkChoice] = Field(
        max_length=1,
        description="The one that grows; none beside the usage of all.",
        examples=[[{"index": 0, "delta": {"content": "A red"}, "logprobs": None, "finish_reason": None}]],
    )
    usage: CompletionUsage | None = Field(
        default_factory=absent,
        description="With include_usage: the whole in the last chunk, and null before it, or with "
        "continuous_usage_stats the tokens so far. Left out without include_usage.",
    )
