"""A chat's answer at once: chat.completion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.chat.logprobs import ChatLogprobs
from llava_server.api.chat.usage import CompletionUsage
from llava_server.api.openapi.schema import Index, Moment, Shape, absent

__all__ = ["CHAT_ID", "ChatCompletion", "ChatHead", "FinishReason", "ServiceTier"]

CHAT_ID = "chatcmpl-3f1c09a2b44de8715a7c61f02b9d10ee"
FinishReason = Literal["stop", "length", "tool_calls"]
ServiceTier = Literal["flex", "default", "priority"]


class MadeCall(Shape):
    """What to call, and with what."""

    name: str = Field(description="One of the request's functions.", examples=["get_weather"])
    arguments: str = Field(
        description="An object as JSON, which keeps to the function's schema; cut where finish_reason is "
        "length.",
        examples=['{"city":"Paris"}'],
    )


class MadeToolCall(Shape):
    """A function that the caller is to run."""

    id: str = Field(
        description="Names the call in the message that brings its result.",
        examples=["call_0f3c5d2a91b84e6f7a10c2d4"],
    )
    type: Literal["function"] = Field(description="function; there are no other kinds here.")
    function: MadeCall = Field(description="The function and its arguments.")


class AnswerMessage(Shape):
    """What the model said."""

    role: Literal["assistant"] = Field(description="assistant")
    content: str | None = Field(
        description="The text; null where there are only calls.", examples=["A red circle."]
    )
    refusal: None = Field(description="Always null: this server has no refusals.")
    tool_calls: list[MadeToolCall] = Field(
        default_factory=absent,
        min_length=1,
        description="Functions to call, in their order; left out without any.",
        examples=[
            [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]
        ],
    )


class ChatChoice(Shape):
    """One of n answers."""

    index: Index = Field(description="Its number, from 0.", examples=[0])
    message: AnswerMessage = Field(description="Its text or its calls.")
    logprobs: ChatLogprobs | None = Field(description="Null unless logprobs asked for them.", examples=[None])
    finish_reason: FinishReason = Field(
        description="stop: the model ended it, or a stop string did; length: max_tokens or the context was "
        "used up; tool_calls: the model decided to call."
    )


class ChatHead(Shape):
    """What a chat's answer and each of its chunks begin with."""

    id: str = Field(
        description="Of the answer: GET /v1/chat/completions/{id} reads it again.", examples=[CHAT_ID]
    )
    created: Moment = Field(description="When it was written, Unix seconds.", examples=[1764241200])
    model: str = Field(description="The model that answered.", examples=["tiny-llava"])
    system_fingerprint: str | None = Field(
        description="Changes with the model's weights or the way they are computed; null: its workers left.",
        examples=["fp_5a7c61f02b"],
    )
    service_tier: ServiceTier = Field(description="How the request stood in the queue.")


class ChatCompletion(ChatHead):
    """The answer to a chat, with all its choices."""

    object: Literal["chat.completion"] = Field(description="chat.completion")
    choices: list[ChatChoice] = Field(
        min_length=1,
        description="n of them.",
        examples=[
            [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "A red circle.", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ]
        ],
    )
    usage: CompletionUsage = Field(description="The tokens that it took.")
