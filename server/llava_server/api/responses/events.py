"""The events of a streamed response; each is named by its ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from llava_server.api.chat.logprobs import TokenLogprob
from llava_server.api.responses.response import (
    MESSAGE_EXAMPLE,
    TEXT_EXAMPLE,
    OutputItem,
    OutputText,
    Response,
)
from llava_server.response_model import Count, ResponseModel, doc

__all__ = [
    "ArgumentsDelta",
    "ArgumentsDone",
    "ContentPartEvent",
    "OutputItemEvent",
    "OutputTextDelta",
    "OutputTextDone",
    "PartEventType",
    "ResponseEvent",
    "ResponseStatusEvent",
    "StatusEventType",
]

# Assigned when the event is emitted.
SequenceNumber = Annotated[Count, doc("Its number, from 0; starting_after takes it.", 4)]
OutputIndex = Annotated[Count, doc("The item's place in the output, from 0.", 0)]
ItemId = Annotated[str, doc("The item.", "msg_3f1c09a2b44de8715a7c61f02b9d10ee_0")]
ContentIndex = Annotated[Literal[0], doc("Always 0: a message has one text.")]
StatusEventType = Literal[
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]
PartEventType = Literal["response.content_part.added", "response.content_part.done"]


class ResponseStatusEvent(ResponseModel, kw_only=True):
    """The response comes to another status; the last three end the stream."""

    type: Annotated[StatusEventType, doc("The status, but for response.created.", "response.created")]
    sequence_number: SequenceNumber = 0
    response: Annotated[Response, doc("The response as it is then.")]


class OutputItemEvent(ResponseModel, kw_only=True):
    """An item opens, or it is whole."""

    type: Annotated[Literal["response.output_item.added", "response.output_item.done"], doc("Which.")]
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item: Annotated[OutputItem, doc("The item as it is then.", MESSAGE_EXAMPLE)]


class ContentPartEvent(ResponseModel, kw_only=True):
    """A message's text opens, or it is whole."""

    type: Annotated[PartEventType, doc("Which.")]
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    content_index: ContentIndex = 0
    part: Annotated[OutputText, doc("The text as it is then.", TEXT_EXAMPLE)]


class OutputTextDelta(ResponseModel, kw_only=True):
    """More of a text."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    content_index: ContentIndex = 0
    delta: Annotated[str, doc("What is new.", "A red")]
    logprobs: Annotated[list[TokenLogprob], doc("Of its tokens; empty unless include asked for them.", [])]


class OutputTextDone(ResponseModel, kw_only=True):
    """A text is whole."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    content_index: ContentIndex = 0
    text: Annotated[str, doc("All of it.", "A red circle.")]
    logprobs: Annotated[
        list[TokenLogprob], doc("Of all its tokens; empty unless include asked for them.", [])
    ]


class ArgumentsDelta(ResponseModel, kw_only=True):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    delta: Annotated[str, doc("What is new; pieces are joined.", '{"city":')]


class ArgumentsDone(ResponseModel, kw_only=True):
    """A call's arguments are whole."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    name: Annotated[str, doc("The function.", "get_weather")]
    arguments: Annotated[str, doc("All of them, as JSON.", '{"city":"Paris"}')]


ResponseEvent = (
    ResponseStatusEvent
    | OutputItemEvent
    | ContentPartEvent
    | OutputTextDelta
    | OutputTextDone
    | ArgumentsDelta
    | ArgumentsDone
)
