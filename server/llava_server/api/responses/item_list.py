"""The input items of a stored response, in the format of OpenAI's list of items."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, UnsetType

from llava_server.api.chat.logprobs import TokenLogprob
from llava_server.api.responses.response import OutputFunctionCall
from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["InputTokenCount", "StoredItemList", "to_stored_item"]

_NUMBER = "3f1c09a2b44de8715a7c61f02b9d10ee"
_MESSAGE_ID = f"msg_{_NUMBER}_i0"
_PART = {"type": "input_text", "text": "What is in the image?"}
_MESSAGE = {"id": _MESSAGE_ID, "type": "message", "status": "completed", "role": "user", "content": [_PART]}


class StoredInputText(ResponseModel, kw_only=True, tag_field="type", tag="input_text"):
    """A text part of an input message."""

    text: Annotated[str, doc("The text.", "What is in the image?")]


class StoredInputImage(ResponseModel, kw_only=True, tag_field="type", tag="input_image"):
    """An image part of an input message."""

    detail: Annotated[str, doc("Value from the request.", "auto")]
    image_url: Annotated[
        str | None,
        doc("The image's URL. Null unless include contains message.input_image.image_url.", None),
    ]
    file_id: Annotated[str | None, doc("ID of the image's file. Null if it was sent as a URL.", None)]


class StoredOutputText(ResponseModel, kw_only=True, tag_field="type", tag="output_text"):
    """The text of an assistant message."""

    text: Annotated[str, doc("The text.", "A red circle.")]
    annotations: Annotated[list[str], doc("Always empty. Citations are not supported.", [], max_length=0)]
    logprobs: Annotated[list[TokenLogprob], doc("Always empty.", [], max_length=0)]


StoredPart = StoredInputText | StoredInputImage | StoredOutputText


class StoredMessage(ResponseModel, kw_only=True, tag_field="type", tag="message"):
    """A message of the conversation."""

    id: Annotated[str, doc("ID of the item. Can be used in an item_reference.", _MESSAGE_ID)]
    status: Literal["completed"] = "completed"
    role: Annotated[Literal["user", "assistant", "system", "developer"], doc("Role of the author.", "user")]
    content: Annotated[list[StoredPart], doc("The content parts of the message.", [_PART])]


class StoredCallResult(ResponseModel, kw_only=True, tag_field="type", tag="function_call_output"):
    """The result of a function call."""

    id: Annotated[str, doc("ID of the item.", f"fco_{_NUMBER}_i1")]
    status: Literal["completed"] = "completed"
    call_id: Annotated[
        str, doc("ID of the function call that produced this result.", "call_0f3c5d2a91b84e6f7a10c2d4")
    ]
    output: Annotated[
        str | list[StoredInputText | StoredInputImage], doc("Output of the function.", "18 degrees")
    ]


StoredItem = StoredMessage | OutputFunctionCall | StoredCallResult


class StoredItemList(ResponseModel, kw_only=True):
    """A page of the items from which a response was generated."""

    object: Literal["list"] = "list"
    data: Annotated[list[StoredItem], doc("The items on this page.", [_MESSAGE])]
    has_more: Annotated[
        bool, doc("Whether there are more items. To get the next page, set after to last_id.")
    ]
    first_id: Annotated[
        str | UnsetType, doc("ID of the first item on this page. Omitted if the page is empty.", _MESSAGE_ID)
    ] = UNSET
    last_id: Annotated[
        str | UnsetType, doc("ID of the last item on this page. Omitted if the page is empty.", _MESSAGE_ID)
    ] = UNSET


class InputTokenCount(ResponseModel):
    """The number of tokens in the input of a response."""

    input_tokens: Annotated[Count, doc("Number of prompt tokens, including image tokens.", 612)]
    object: Literal["response.input_tokens"] = "response.input_tokens"


def to_stored_item(item: dict[str, Any], *, has_image_urls: bool) -> StoredItem:
    """Convert an item from the store."""
    item_id, kind = item["id"], item["type"]
    if kind == "function_call":
        return OutputFunctionCall(
            id=item_id,
            name=item["name"],
            status="completed",
            arguments=item["arguments"],
            call_id=item["call_id"],
        )
    if kind == "function_call_output":
        output = item["output"]
        if not isinstance(output, str):
            output = [_part(part, "user", has_image_urls=has_image_urls) for part in output]
        return StoredCallResult(id=item_id, call_id=item["call_id"], output=output)
    content = item["content"]
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    return StoredMessage(
        id=item_id,
        role=item["role"],
        content=[_part(part, item["role"], has_image_urls=has_image_urls) for part in parts],
    )


def _part(part: dict[str, Any], role: str, *, has_image_urls: bool) -> StoredPart:
    if part["type"] == "input_image":
        return StoredInputImage(
            detail=part.get("detail") or "auto",
            image_url=part.get("image_url") if has_image_urls else None,
            file_id=part.get("file_id"),
        )
    if role == "assistant":
        return StoredOutputText(text=part["text"], annotations=[], logprobs=[])
    return StoredInputText(text=part["text"])
