"""The events of a streamed message; each is named by its ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from llava_server.api.anthropic.response import Block, MessageCost, StartedMessage, StopReason
from llava_server.api.openapi.error import MessageError
from llava_server.api.openapi.schema import Index, Shape

__all__ = ["MessageEvent"]

_BLOCK = "The block's place in the message's content, from 0."


class MessageStart(Shape):
    """The message begins."""

    type: Literal["message_start"] = Field(description="message_start")
    message: StartedMessage = Field(description="The message without content.")


class ContentBlockStart(Shape):
    """A block opens."""

    type: Literal["content_block_start"] = Field(description="content_block_start")
    index: Index = Field(description=_BLOCK, examples=[0])
    content_block: Block = Field(
        description="The block, still empty.", examples=[{"type": "text", "text": ""}]
    )


class TextDelta(Shape):
    """More of a text."""

    type: Literal["text_delta"] = Field(description="text_delta")
    text: str = Field(description="What is new.", examples=["A red"])


class InputJsonDelta(Shape):
    """More of a tool's arguments."""

    type: Literal["input_json_delta"] = Field(description="input_json_delta")
    partial_json: str = Field(
        description="More of the arguments as JSON; pieces are joined.", examples=['{"city":']
    )


class ContentBlockDelta(Shape):
    """The open block grows."""

    type: Literal["content_block_delta"] = Field(description="content_block_delta")
    index: Index = Field(description=_BLOCK, examples=[0])
    delta: Annotated[TextDelta | InputJsonDelta, Field(discriminator="type")] = Field(
        description="What is new.", examples=[{"type": "text_delta", "text": "A red"}]
    )


class ContentBlockStop(Shape):
    """The open block is whole."""

    type: Literal["content_block_stop"] = Field(description="content_block_stop")
    index: Index = Field(description=_BLOCK, examples=[0])


class MessageEnding(Shape):
    """How a message ended."""

    stop_reason: StopReason = Field(description="As in a whole message.")
    stop_sequence: str | None = Field(description="The one that ended it, else null.", examples=["###"])


class MessageDelta(Shape):
    """The message has ended."""

    type: Literal["message_delta"] = Field(description="message_delta")
    delta: MessageEnding = Field(
        description="How it ended.", examples=[{"stop_reason": "end_turn", "stop_sequence": None}]
    )
    usage: MessageCost = Field(description="The tokens that all of it took.")


class MessageStop(Shape):
    """Nothing comes any more."""

    type: Literal["message_stop"] = Field(description="message_stop")


class MessageEvent(
    RootModel[
        Annotated[
            MessageStart
            | ContentBlockStart
            | ContentBlockDelta
            | ContentBlockStop
            | MessageDelta
            | MessageStop
            | MessageError,
            Field(discriminator="type"),
        ]
    ]
):
    """The data of one event, whose name is its type."""
