"""The turns of a chat request: texts, pictures, calls of functions and what came of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llava_server.api.fields.base import RequestModel, invalid_value, text_or_list

__all__ = [
    "AssistantMessage",
    "CallId",
    "ChatMessage",
    "FunctionName",
    "ImagePart",
    "ImageUrl",
    "SystemMessage",
    "TextPart",
    "ToolCall",
    "ToolMessage",
    "UserMessage",
    "check_tool_results",
]

_MAX_PARTS = 256
_MAX_CALLS = 64

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class TextPart(RequestModel):
    """A piece of text."""

    type: Literal["text"] = Field(description="text")
    text: str = Field(
        description="Plain text. Words such as <image> or </s> in it mean nothing special.",
        examples=["What is in the picture?"],
    )


class ImageUrl(RequestModel):
    """Where a picture is."""

    url: str = Field(
        description="The picture itself: data:image/png;base64,... (JPEG, PNG, WEBP, GIF, BMP; first frame).",
        examples=["data:image/png;base64,iVBORw0KGgo..."],
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None,
        description="How closely to look. low: only all of the picture at once, in the model's one "
        "resolution, for the fewest tokens; high and auto (default): also its parts, where the model does "
        "that (LLaVA-1.6). LLaVA-1.5 has one resolution, so there all are the same.",
        examples=["low"],
    )


class ImagePart(RequestModel):
    """A picture."""

    type: Literal["image_url"] = Field(description="image_url")
    image_url: ImageUrl = Field(description="The picture and how closely to look at it.")


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
PartList = Annotated[list[Part], Field(min_length=1, max_length=_MAX_PARTS)]
Content = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[PartList, Tag("<list>")], Discriminator(text_or_list)
]


def _only_text(content: str | list[TextPart | ImagePart]) -> str | list[TextPart | ImagePart]:
    if not isinstance(content, str) and any(isinstance(part, ImagePart) for part in content):
        raise PydanticCustomError("unsupported_content", "pictures belong into user messages")
    return content


TextContent = Annotated[Content, AfterValidator(_only_text)]

_CONTENT = "Text, or a list of parts in reading order."
_NAME: Any = Field(None, description="Accepted; the model's prompt has no place for names.", examples=["Ada"])


class SystemMessage(RequestModel):
    """What the model shall keep in mind; replaces the model's own system sentence."""

    role: Literal["system", "developer"] = Field(description="Who speaks; both mean the same.")
    content: TextContent = Field(description=_CONTENT, examples=["Answer in one word."])
    name: str | None = _NAME


class UserMessage(RequestModel):
    """A question, with pictures where they belong in the text."""

    role: Literal["user"] = Field(description="Who speaks.")
    content: Content = Field(description=_CONTENT, examples=["What can you do?"])
    name: str | None = _NAME


class FunctionCall(RequestModel):
    """Which function, and with what."""

    name: FunctionName = Field(description="The function's name.", examples=["get_weather"])
    arguments: str = Field(description="Its arguments as JSON in a string.", examples=['{"city": "Paris"}'])


class ToolCall(RequestModel):
    """A call that an earlier answer made."""

    id: CallId = Field(description="Its id in that answer.", examples=["call_1"])
    type: Literal["function"] = Field(description="function; there are no other kinds here.")
    function: FunctionCall = Field(description="What was called.")


class AssistantMessage(RequestModel):
    """An earlier answer: text, or calls of functions, or both."""

    role: Literal["assistant"] = Field(description="Who speaks.")
    content: TextContent | None = Field(
        None, description="Its text; may be left out beside tool_calls.", examples=["I see a red circle."]
    )
    name: str | None = _NAME
    refusal: str | None = Field(
        None, description="Accepted; nothing here refuses, so it is not shown.", examples=["I cannot."]
    )
    audio: Any = Field(None, description="Not done; only null.", examples=[None])
    tool_calls: list[ToolCall] | None = Field(
        None,
        max_length=_MAX_CALLS,
        description=f"The calls that it made, at most {_MAX_CALLS}.",
        examples=[[{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]],
    )
    function_call: Any = Field(None, description="Not done; only null. Use tool_calls.", examples=[None])

    @field_validator("function_call", "audio")
    @classmethod
    def _only_null(cls, value: Any) -> Any:
        if value is None:
            return value
        raise PydanticCustomError("unsupported_parameter", "only null is supported here: use tool_calls")

    @model_validator(mode="after")
    def _check_content(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "content is required", {"fields": ("content",)})
        return self


class ToolMessage(RequestModel):
    """What came of a call."""

    role: Literal["tool"] = Field(description="Who speaks.")
    content: TextContent = Field(description=_CONTENT, examples=["18 degrees, sunny"])
    tool_call_id: CallId = Field(description="The call's id.", examples=["call_1"])


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def check_tool_results(messages: list[ChatMessage]) -> None:
    """Check that each tool call is followed by its result, and that each result has its call."""
    open_ids: list[str] = []
    for index, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in open_ids:
                raise invalid_value(
                    f"messages[{index}].tool_call_id",
                    f"messages[{index}].tool_call_id is {message.tool_call_id[:60]!a}, and no tool_calls "
                    "before it wait for that one",
                )
            open_ids.remove(message.tool_call_id)
        elif open_ids:
            raise invalid_value(
                f"messages[{index}]",
                f"messages[{index}] comes before the result of call {open_ids[0][:60]!a}: send a message "
                "of role tool first",
            )
        elif isinstance(message, AssistantMessage):
            open_ids = [call.id for call in message.tool_calls or ()]
    if open_ids:
        raise invalid_value(
            "messages",
            f"the call {open_ids[0][:60]!a} has no result: send a message of role tool with its id",
        )
