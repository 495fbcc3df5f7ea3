"""Server-sent events of a streamed response. The name of each event is the value of its ``type`` field."""

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
SequenceNumber = Annotated[
    Count,
    doc(
        "Sequence number of the event, starting at 0. Can be sent as starting_after to resume the stream.", 4
    ),
]
OutputIndex = Annotated[Count, doc("Index of the item in the output, starting at 0.", 0)]
ItemId = Annotated[str, doc("ID of the item.", "msg_3f1c09a2b44de8715a7c61f02b9d10ee_0")]
ContentIndex = Annotated[Literal[0], doc("Always 0. A message always consists of one content part.")]
StatusEventType = Literal[
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]
PartEventType = Literal["response.content_part.added", "response.content_part.done"]


class ResponseStatusEvent(ResponseModel, kw_only=True):
    """A change in the status of the response. Events of the last three types end the stream."""

    type: Annotated[
        StatusEventType, doc("Type of the event, which ends with the new status.", "response.created")
    ]
    sequence_number: SequenceNumber = 0
    response: Annotated[Response, doc("The response at the time of the event.")]


class OutputItemEvent(ResponseModel, kw_only=True):
    """The start or end of an output item."""

    type: Annotated[
        Literal["response.output_item.added", "response.output_item.done"],
        doc("Whether the item was added or is done."),
    ]
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item: Annotated[OutputItem, doc("The item at the time of the event.", MESSAGE_EXAMPLE)]


class ContentPartEvent(ResponseModel, kw_only=True):
    """The start or end of a message's content part."""

    type: Annotated[PartEventType, doc("Whether the content part was added or is done.")]
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    content_index: ContentIndex = 0
    part: Annotated[OutputText, doc("The content part at the time of the event.", TEXT_EXAMPLE)]


class OutputTextDelta(ResponseModel, kw_only=True):
    """Text to append to a message."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    content_index: ContentIndex = 0
    delta: Annotated[str, doc("The text to append.", "A red")]
    logprobs: Annotated[
        list[TokenLogprob], doc("Log probabilities of the new tokens. Empty if not requested.", [])
    ]


class OutputTextDone(ResponseModel, kw_only=True):
    """The end of a message's text."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    content_index: ContentIndex = 0
    text: Annotated[str, doc("The complete text.", "A red circle.")]
    logprobs: Annotated[
        list[TokenLogprob], doc("Log probabilities of all tokens. Empty if not requested.", [])
    ]


class ArgumentsDelta(ResponseModel, kw_only=True):
    """The next part of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    delta: Annotated[
        str, doc("Next part of the arguments. Concatenate all parts to get a JSON object.", '{"city":')
    ]


class ArgumentsDone(ResponseModel, kw_only=True):
    """The end of a call's arguments."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    sequence_number: SequenceNumber = 0
    output_index: OutputIndex
    item_id: ItemId
    name: Annotated[str, doc("Name of the function.", "get_weather")]
    arguments: Annotated[str, doc("The complete arguments, JSON-encoded.", '{"city":"Paris"}')]


ResponseEvent = (
    ResponseStatusEvent
    | OutputItemEvent
    | ContentPartEvent
    | OutputTextDelta
    | OutputTextDone
    | ArgumentsDelta
    | ArgumentsDone
)
