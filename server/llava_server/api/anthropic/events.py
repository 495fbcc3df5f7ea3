"""Server-sent events of a streamed message. The name of each event is the value of its ``type`` field."""

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

BlockIndex = Annotated[Count, doc("Index of the content block in the message, starting at 0.", 0)]


class MessageStart(ResponseModel, kw_only=True):
    """The start of the message."""

    type: Literal["message_start"] = "message_start"
    message: Annotated[StartedMessage, doc("The message, with empty content.")]


class ContentBlockStart(ResponseModel, kw_only=True):
    """The start of a content block."""

    type: Literal["content_block_start"] = "content_block_start"
    index: BlockIndex
    content_block: Annotated[
        OutputBlock, doc("The new content block, initially empty.", {"type": "text", "text": ""})
    ]


class TextDelta(ResponseModel, tag_field="type", tag="text_delta"):
    """Text to append to a text block."""

    text: Annotated[str, doc("The text to append.", "A red")]


class InputJsonDelta(ResponseModel, tag_field="type", tag="input_json_delta"):
    """The next part of a tool call's arguments."""

    partial_json: Annotated[
        str, doc("Next part of the arguments. Concatenate all parts to get a JSON object.", '{"city":')
    ]


class ContentBlockDelta(ResponseModel, kw_only=True):
    """Content to append to the current block."""

    type: Literal["content_block_delta"] = "content_block_delta"
    index: BlockIndex
    delta: Annotated[
        TextDelta | InputJsonDelta, doc("The content to append.", {"type": "text_delta", "text": "A red"})
    ]


class ContentBlockStop(ResponseModel, kw_only=True):
    """The end of the current block."""

    type: Literal["content_block_stop"] = "content_block_stop"
    index: BlockIndex


class MessageEnd(ResponseModel):
    """Why the message ended."""

    stop_reason: Annotated[StopReason, doc("Same as stop_reason in a non-streamed message.")]
    stop_sequence: Annotated[
        str | None, doc("The stop sequence that ended the output. Null if none did.", "###")
    ]


class MessageDelta(ResponseModel, kw_only=True):
    """The stop reason and the token usage, sent after the last content block."""

    type: Literal["message_delta"] = "message_delta"
    delta: Annotated[
        MessageEnd,
        doc("Why the message ended.", {"stop_reason": "end_turn", "stop_sequence": None}),
    ]
    usage: Annotated[MessageUsage, doc("Total token usage of the message.")]


class MessageStop(ResponseModel):
    """The last event of the stream."""

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
