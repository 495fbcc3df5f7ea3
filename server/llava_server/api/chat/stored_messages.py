"""Lists of stored chat completions and of their messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, UnsetType
from pydantic import Field

from llava_server.api.chat.request import Metadata
from llava_server.api.chat.response import CHAT_ID, ChatCompletion, MessageFunction, MessageToolCall
from llava_server.api.fields.base import RequestModel
from llava_server.response_model import ResponseModel, doc

__all__ = ["ChatList", "ChatUpdate", "StoredChatMessage", "StoredMessageList", "to_stored_message"]

_MESSAGE_ID = f"{CHAT_ID}-0"


class ChatUpdate(RequestModel):
    """A change to a stored chat completion."""

    metadata: Metadata | None = Field(
        description="The new metadata, which replaces the old: up to 16 key-value pairs. Keys can be up to "
        "64 characters long, and values up to 512 characters.",
        examples=[{"run": "7"}],
    )


class ChatList(ResponseModel, kw_only=True):
    """A page of the stored chat completions of this API key."""

    object: Literal["list"] = "list"
    data: Annotated[list[ChatCompletion], doc("The completions on this page.", [])]
    has_more: Annotated[
        bool, doc("Whether there are more completions. To get the next page, set after to last_id.")
    ]
    first_id: Annotated[
        str | UnsetType,
        doc("ID of the first completion on this page. Omitted if the page is empty.", CHAT_ID),
    ] = UNSET
    last_id: Annotated[
        str | UnsetType, doc("ID of the last completion on this page. Omitted if the page is empty.", CHAT_ID)
    ] = UNSET


class StoredChatMessage(ResponseModel, kw_only=True):
    """A message of the request for which the completion was generated."""

    id: Annotated[str, doc("ID of the message.", _MESSAGE_ID)]
    role: Annotated[str, doc("Role of the author.", "user")]
    content: Annotated[
        str | None, doc("Text of the message. Null if it was sent as a list of parts.", "What can you do?")
    ]
    content_parts: Annotated[
        list[dict[str, Any]] | None,
        doc("Content parts as sent in the request. Null if the content was sent as a string.", None),
    ]
    refusal: Annotated[None, doc("Always null. Refusals are not supported.")] = None
    name: Annotated[str | UnsetType, doc("Value from the request.", "Ada")] = UNSET
    tool_call_id: Annotated[str | UnsetType, doc("Value from the request.", "call_1")] = UNSET
    tool_calls: Annotated[list[MessageToolCall] | UnsetType, doc("Tool calls of the message.", [])] = UNSET


class StoredMessageList(ResponseModel, kw_only=True):
    """A page of the messages of a stored chat completion."""

    object: Literal["list"] = "list"
    data: Annotated[list[StoredChatMessage], doc("The messages on this page.", [])]
    has_more: Annotated[
        bool, doc("Whether there are more messages. To get the next page, set after to last_id.")
    ]
    first_id: Annotated[
        str | UnsetType,
        doc("ID of the first message on this page. Omitted if the page is empty.", _MESSAGE_ID),
    ] = UNSET
    last_id: Annotated[
        str | UnsetType,
        doc("ID of the last message on this page. Omitted if the page is empty.", _MESSAGE_ID),
    ] = UNSET


def to_stored_message(chat_id: str, index: int, message: dict[str, Any]) -> StoredChatMessage:
    """Convert a message from the store."""
    content = message.get("content")
    is_list = isinstance(content, list)
    calls = [
        MessageToolCall(id=call["id"], function=MessageFunction(**call["function"]))
        for call in message.get("tool_calls") or ()
    ]
    return StoredChatMessage(
        id=f"{chat_id}-{index}",
        role=message["role"],
        content=None if is_list else content,
        content_parts=content if is_list else None,
        name=message.get("name", UNSET),
        tool_call_id=message.get("tool_call_id", UNSET),
        tool_calls=calls or UNSET,
    )
