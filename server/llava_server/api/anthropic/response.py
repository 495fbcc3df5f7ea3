"""A message in the form of Anthropic's Messages API, and the token count of a prompt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from llava_server.response_model import Count, ResponseModel, doc

__all__ = [
    "Message",
    "MessageTokens",
    "MessageUsage",
    "OutputBlock",
    "OutputTextBlock",
    "OutputToolUseBlock",
    "StartedMessage",
    "StopReason",
]

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class OutputTextBlock(ResponseModel, tag_field="type", tag="text"):
    """Something that the model said."""

    text: Annotated[str, doc("What it said.", "A red circle.")]


class OutputToolUseBlock(ResponseModel, tag_field="type", tag="tool_use"):
    """A tool that the caller is to run."""

    id: Annotated[str, doc("Names the call in the tool_result block.", "toolu_0f3c5d2a91b84e6f7a10c2d4")]
    name: Annotated[str, doc("One of the request's tools.", "get_weather")]
    input: Annotated[
        dict[str, Any],
        doc(
            "The arguments, which keep to the tool's schema; empty in content_block_start, and where "
            "max_tokens cut them.",
            {"city": "Paris"},
        ),
    ]


OutputBlock = OutputTextBlock | OutputToolUseBlock


class MessageUsage(ResponseModel):
    """Tokens; the prompt's are the sum of input_tokens and cache_read_input_tokens."""

    input_tokens: Annotated[Count, doc("Tokens of the prompt that had to be computed.", 36)]
    cache_creation_input_tokens: Annotated[Literal[0], doc("Always 0: caching costs nothing here.")]
    cache_read_input_tokens: Annotated[
        Count, doc("Tokens of the prompt that a worker had computed before.", 576)
    ]
    output_tokens: Annotated[Count, doc("Tokens of the answer, its end mark included.", 9)]


class MessageHead(ResponseModel, kw_only=True):
    """The fields of a message, in their order."""

    id: Annotated[str, doc("Of the message.", "msg_3f1c09a2b44de8715a7c61f02b9d10ee")]
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: Annotated[str, doc("The model that answered.", "tiny-llava")]
    content: list[OutputBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: Annotated[MessageUsage, doc("The tokens that it took, of a stream so far.")]


class Message(MessageHead, kw_only=True):
    """The answer to a conversation."""

    content: Annotated[
        list[OutputBlock],
        doc(
            "What the model said and the tools that it asks for, in their order.",
            [{"type": "text", "text": "A red circle."}],
        ),
    ]
    stop_reason: Annotated[
        StopReason,
        doc(
            "end_turn: the model ended it; stop_sequence: one of the request's did; max_tokens: they or the "
            "context were used up; tool_use: a tool is to be run."
        ),
    ]
    stop_sequence: Annotated[str | None, doc("The one that ended it, else null.", "###")]


class StartedMessage(MessageHead, kw_only=True):
    """A message that begins."""

    content: Annotated[list[OutputBlock], doc("Nothing yet.", [], max_length=0)]
    stop_reason: Annotated[None, doc("Null: it has not ended.")] = None
    stop_sequence: Annotated[None, doc("Null: it has not ended.")] = None


class MessageTokens(ResponseModel):
    """How long the prompt would be."""

    input_tokens: Annotated[Count, doc("Its tokens, with the places that pictures take.", 612)]
