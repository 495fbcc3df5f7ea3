"""The response of a chat: one chat.completion, or the chat.completion.chunk objects of a stream."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from llava_server.api.chat.logprobs import ChatLogprobs
from llava_server.api.chat.usage import CompletionUsage
from llava_server.response_model import AlwaysTrue, Count, ResponseModel, Timestamp, doc

__all__ = [
    "CHAT_ID",
    "SERVICE_TIERS",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatDelta",
    "ChatFinishReason",
    "ChatOutputMessage",
    "ChunkChoice",
    "DeletedChat",
    "ChoiceDeltaFunction",
    "MessageFunction",
    "MessageToolCall",
    "ServiceTier",
    "ChoiceDeltaToolCall",
]

CHAT_ID = "chatcmpl-3f1c09a2b44de8715a7c61f02b9d10ee"
ChatFinishReason = Literal["stop", "length", "tool_calls"]
ServiceTier = Literal["flex", "default", "priority"]
SERVICE_TIERS: dict[int, ServiceTier] = {-1: "flex", 0: "default", 1: "priority"}  # by a job's priority
_MESSAGE = {"role": "assistant", "content": "A red circle.", "refusal": None}
_TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}


class ChatHead(ResponseModel, kw_only=True):
    """What a chat's answer and each of its chunks begin with."""

    id: Annotated[str, doc("Of the answer: GET /v1/chat/completions/{id} reads it again.", CHAT_ID)]
    object: str
    created: Annotated[Timestamp, doc("When it was written, Unix seconds.", 1764241200)]
    model: Annotated[str, doc("The model that answered.", "tiny-llava")]
    system_fingerprint: Annotated[
        str | None,
        doc(
            "Changes with the model's weights or the way they are computed; null: its workers left.",
            "fp_5a7c61f02b",
        ),
    ]
    service_tier: Annotated[ServiceTier, doc("How the request stood in the queue.", "default")]


class MessageFunction(ResponseModel):
    """What to call, and with what."""

    name: Annotated[str, doc("One of the request's functions.", "get_weather")]
    arguments: Annotated[
        str,
        doc(
            "An object as JSON, which keeps to the function's schema; cut where finish_reason is length.",
            '{"city":"Paris"}',
        ),
    ]


class MessageToolCall(ResponseModel, kw_only=True):
    """A function that the caller is to run."""

    id: Annotated[
        str, doc("Names the call in the message that brings its result.", "call_0f3c5d2a91b84e6f7a10c2d4")
    ]
    type: Annotated[Literal["function"], doc("function; there are no other kinds here.")] = "function"
    function: Annotated[MessageFunction, doc("The function and its arguments.")]


class ChatOutputMessage(ResponseModel, kw_only=True):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: Annotated[str | None, doc("The text; null where there are only calls.", "A red circle.")]
    refusal: Annotated[None, doc("Always null: this server has no refusals.")] = None
    tool_calls: Annotated[
        Annotated[list[MessageToolCall], Meta(min_length=1)] | UnsetType,
        doc("Functions to call, in their order; left out without any.", [_TOOL_CALL]),
    ] = UNSET


class ChatChoice(ResponseModel):
    """One of n answers."""

    index: Annotated[Count, doc("Its number, from 0.", 0)]
    message: Annotated[ChatOutputMessage, doc("Its text or its calls.")]
    logprobs: Annotated[ChatLogprobs | None, doc("Null unless logprobs asked for them.", None)]
    finish_reason: Annotated[
        ChatFinishReason,
        doc(
            "stop: the model ended it, or a stop string did; length: max_tokens or the context was used up; "
            "tool_calls: the model decided to call.",
            "stop",
        ),
    ]


class ChatCompletion(ChatHead, kw_only=True):
    """The answer to a chat, with all its choices."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: Annotated[
        list[ChatChoice],
        doc(
            "n of them.",
            [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
            min_length=1,
        ),
    ]
    usage: Annotated[CompletionUsage, doc("The tokens that it took.")]


class ChoiceDeltaFunction(ResponseModel, kw_only=True):
    """More of a call."""

    name: Annotated[str | UnsetType, doc("The function; only in the call's first piece.", "get_weather")] = (
        UNSET
    )
    arguments: Annotated[str, doc("More of the arguments; pieces are joined.", '{"city":')]


class ChoiceDeltaToolCall(ResponseModel, kw_only=True):
    """A call that begins, or more of it."""

    index: Annotated[Count, doc("Which of the choice's calls, from 0.", 0)]
    id: Annotated[
        str | UnsetType, doc("Names the call; only in its first piece.", "call_0f3c5d2a91b84e6f7a10c2d4")
    ] = UNSET
    type: Annotated[
        Literal["function"] | UnsetType, doc("function; only in the call's first piece.", "function")
    ] = UNSET
    function: Annotated[ChoiceDeltaFunction, doc("More of it.")]


class ChatDelta(ResponseModel, kw_only=True):
    """What is new; empty in a choice's last chunk."""

    role: Annotated[
        Literal["assistant"] | UnsetType, doc("assistant; only in the choice's first chunk.", "assistant")
    ] = UNSET
    content: Annotated[str | UnsetType, doc("More of the text.", "A red")] = UNSET
    tool_calls: Annotated[
        Annotated[list[ChoiceDeltaToolCall], Meta(min_length=1)] | UnsetType,
        doc("More of the calls.", [{"index": 0, "function": {"arguments": '{"city":'}}]),
    ] = UNSET


class ChunkChoice(ResponseModel):
    """More of one choice."""

    index: Annotated[Count, doc("The choice's number, from 0.", 0)]
    delta: Annotated[ChatDelta, doc("What is new.", {"content": "A red"})]
    logprobs: Annotated[ChatLogprobs | None, doc("Of the chunk's tokens; null unless asked for.", None)] = (
        None
    )
    finish_reason: Annotated[
        ChatFinishReason | None, doc("Why the choice ended, in its last chunk; null before.", "stop")
    ] = None


class ChatCompletionChunk(ChatHead, kw_only=True):
    """The data of one event, whose id is {id}:{tokens so far}, as Last-Event-ID takes it."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: Annotated[
        list[ChunkChoice],
        doc(
            "The one that grows; none beside the usage of all.",
            [{"index": 0, "delta": {"content": "A red"}, "logprobs": None, "finish_reason": None}],
            max_length=1,
        ),
    ]
    usage: Annotated[
        CompletionUsage | None | UnsetType,
        doc(
            "With include_usage: the whole in the last chunk, and null before it, or with "
            "continuous_usage_stats the tokens so far. Left out without include_usage."
        ),
    ] = UNSET


class DeletedChat(ResponseModel):
    """A chat's answer that cannot be read any more."""

    id: Annotated[str, doc("Of the answer.", CHAT_ID)]
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Annotated[AlwaysTrue, doc("Always true: else the answer is an error.")] = True
