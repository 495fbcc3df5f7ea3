"""The events of a streamed response; each is named by its ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from llava_server.api.chat.logprobs import TokenLogprob
from llava_server.api.openapi.schema import Index, Shape
from llava_server.api.responses.response import Response
from llava_server.api.responses.response_items import MESSAGE_EXAMPLE, TEXT_EXAMPLE, OutputItem, OutputText

__all__ = ["ResponseEvent"]

_ITEM_ID = "msg_3f1c09a2b44de8715a7c61f02b9d10ee_0"


class Numbered(Shape):
    """An event of a response."""

    sequence_number: Index = Field(description="Its number, from 0; starting_after takes it.", examples=[4])


class ResponseStep(Numbered):
    """The response comes to another status; the last three end the stream."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ] = Field(description="The status, but for response.created.")
    response: Response = Field(description="The response as it is then.")


class ItemStep(Numbered):
    """An item opens, or it is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"] = Field(description="Which.")
    output_index: Index = Field(description="The item's place in the output, from 0.", examples=[0])
    item: OutputItem = Field(description="The item as it is then.", examples=[MESSAGE_EXAMPLE])


class Placed(Numbered):
    """Something about an item."""

    output_index: Index = Field(description="The item's place in the output, from 0.", examples=[0])
    item_id: str = Field(description="The item.", examples=[_ITEM_ID])


class PlacedText(Placed):
    """Something about a message's text."""

    content_index: Literal[0] = Field(description="Always 0: a message has one text.")


class PartStep(PlacedText):
    """A message's text opens, or it is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"] = Field(description="Which.")
    part: OutputText = Field(description="The text as it is then.", examples=[TEXT_EXAMPLE])


class OutputTextDelta(PlacedText):
    """More of a text."""

    type: Literal["response.output_text.delta"] = Field(description="response.output_text.delta")
    delta: str = Field(description="What is new.", examples=["A red"])
    logprobs: list[TokenLogprob] = Field(
        description="Of its tokens; empty unless include asked for them.", examples=[[]]
    )


class OutputTextDone(PlacedText):
    """A text is whole."""

    type: Literal["response.output_text.done"] = Field(description="response.output_text.done")
    text: str = Field(description="All of it.", examples=["A red circle."])
    logprobs: list[TokenLogprob] = Field(
        description="Of all its tokens; empty unless include asked for them.", examples=[[]]
    )


class ArgumentsDelta(Placed):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = Field(
        description="response.function_call_arguments.delta"
    )
    delta: str = Field(description="What is new; pieces are joined.", examples=['{"city":'])


class ArgumentsDone(Placed):
    """A call's arguments are whole."""

    type: Literal["response.function_call_arguments.done"] = Field(
        description="response.function_call_arguments.done"
    )
    name: str = Field(description="The function.", examples=["get_weather"])
    arguments: str = Field(description="All of them, as JSON.", examples=['{"city":"Paris"}'])


class ResponseEvent(
    RootModel[
        Annotated[
            ResponseStep
            | ItemStep
            | PartStep
            | OutputTextDelta
            | OutputTextDone
            | ArgumentsDelta
            | ArgumentsDone,
            Field(discriminator="type"),
        ]
    ]
):
    """The data of one event, whose name is its type."""
