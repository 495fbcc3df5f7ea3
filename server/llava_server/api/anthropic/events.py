"""The events of a streamed message; each is named by its ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from llava_server.api.anthropic.response import MessageUsage, OutputBlock, StartedMessage, StopReason
from llava_server.error_response import MessageError
from llava_server.response_model import Count, ResponseModel, doc

__all__ = [
    "ContentBlockDelta",
    "ContentBlockStart",
    "ContentBlockStop",
    "InputJsonDelta",
    "MessageDelta",
    "MessageEnd",
    "MessageEvent",
    "MessageStart",
    "MessageStop",
    "TextDelta",
]

BlockIndex = Annotated[Count, doc("The block's place in the message's content, from 0.", 0)]


class MessageStart(ResponseModel, kw_only=True):
    """The message begins."""

    type: Literal["message_start"] = "message_start"
    message: Annotated[StartedMessage, doc("The message without content.")]


class ContentBlockStart(ResponseModel, kw_only=True):
    """A block opens."""

    type: Literal["content_block_start"] = "content_block_start"
    index: BlockIndex
    content_block: Annotated[OutputBlock, doc("The block, still empty.", {"type": "text", "text": ""})]


class TextDelta(ResponseModel, tag_field="type", tag="text_delta"):
    """More of a text."""

    text: Annotated[str, doc("What is new.", "A red")]


class InputJsonDelta(ResponseModel, tag_field="type", tag="input_json_delta"):
    """More of a tool's arguments."""

    partial_json: Annotated[str, doc("More of the arguments as JSON; pieces are joined.", '{"city":')]


class ContentBlockDelta(ResponseModel, kw_only=True):
    """The open block grows."""

    type: Literal["content_block_delta"] = "content_block_delta"
    index: BlockIndex
    delta: Annotated[TextDelta | InputJsonDelta, doc("What is new.", {"type": "text_delta", "text": "A red"})]


class ContentBlockStop(ResponseModel, kw_only=True):
    """The open block is whole."""

    type: Literal["content_block_stop"] = "content_block_stop"
    index: BlockIndex


class MessageEnd(ResponseModel):
    """How a message ended."""

    stop_reason: Annotated[StopReason, doc("As in a whole message.")]
    stop_sequence: Annotated[str | None, doc("The one that ended it, else null.", "###")]


class MessageDelta(ResponseModel, kw_only=True):
    """The message has ended."""

    type: Literal["message_delta"] = "message_delta"
    delta: Annotated[MessageEnd, doc("How it ended.", {"stop_reason": "end_turn", "stop_sequence": None})]
    usage: Annotated[MessageUsage, doc("The tokens that all of it took.")]


class MessageStop(ResponseModel):
    """Nothing comes any more."""

    type: Literal["message_stop"] = "message_stop"


MessageEvent = (
    MessageStart
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
    | MessageError
)
