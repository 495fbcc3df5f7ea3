"""Messages of a chat request: text, images, tool calls and tool results."""

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
    "FilePart",
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
    """A text part."""

    type: Literal["text"] = Field(description="text")
    text: str = Field(
        description="Plain text. Special tokens such as <image> or </s> are treated as text.",
        examples=["What is in the image?"],
    )


class ImageUrl(RequestModel):
    """The URL of an image and its level of detail."""

    url: str = Field(
        description="The image as a data URL: data:image/png;base64,... Supported formats are JPEG, PNG, "
        "WEBP, GIF, BMP and TIFF. Only the first frame of an animation or the first page is used.",
        examples=["data:image/png;base64,iVBORw0KGgo..."],
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None,
        description='Level of detail. "low" encodes the whole image as a single tile, which requires the '
        'fewest tokens. "high" and "auto" (default) also encode tiles at a higher resolution if the model '
        "supports this (LLaVA-1.6). For LLaVA-1.5, which uses a single resolution, the value has no effect.",
        examples=["low"],
    )


class ImagePart(RequestModel):
    """An image part."""

    type: Literal["image_url"] = Field(description="image_url")
    image_url: ImageUrl = Field(description="URL of the image and its level of detail.")


class FileReference(RequestModel):
    """An image in a file: either a stored file or the file itself."""

    file_id: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="ID of a file that contains an image, from POST /v1/files.",
        examples=["file-3f1c09a2b44de8715a7c61f02b9d10ee"],
    )
    file_data: str | None = Field(
        None,
        description="The image as a data URL, as an alternative to file_id. Other types of files are not "
        "supported.",
        examples=["data:image/png;base64,iVBORw0KGgo..."],
    )
    filename: str | None = Field(
        None, description="Accepted for compatibility, but ignored.", examples=["circle.png"]
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Extension. Level of detail, as in image_url.detail.", examples=["low"]
    )

    @model_validator(mode="after")
    def _check_source(self) -> FileReference:
        if (self.file_id is None) == (self.file_data is None):
            raise PydanticCustomError(
                "invalid_value", "Set either file_id or file_data.", {"fields": ("file_id",)}
            )
        return self


class FilePart(RequestModel):
    """An image in a file."""

    type: Literal["file"] = Field(description="file")
    file: FileReference = Field(
        description="The file that contains the image.",
        examples=[{"file_id": "file-3f1c09a2b44de8715a7c61f02b9d10ee"}],
    )


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]
PartList = Annotated[list[Part], Field(min_length=1, max_length=_MAX_PARTS)]
Content = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[PartList, Tag("<list>")], Discriminator(text_or_list)
]


def _only_text(
    content: str | list[TextPart | ImagePart | FilePart],
) -> str | list[TextPart | ImagePart | FilePart]:
    if not isinstance(content, str) and any(isinstance(part, ImagePart | FilePart) for part in content):
        raise PydanticCustomError("unsupported_content", "Images are only allowed in user messages.")
    return content


TextContent = Annotated[Content, AfterValidator(_only_text)]

_CONTENT = "A string, or an ordered list of content parts."
_NAME: Any = Field(
    None, description="Accepted for compatibility, but not included in the prompt.", examples=["Ada"]
)


class SystemMessage(RequestModel):
    """A system message. It replaces the model's default system prompt."""

    role: Literal["system", "developer"] = Field(
        description='Role of the author. "system" and "developer" are equivalent.'
    )
    content: TextContent = Field(description=_CONTENT, examples=["Answer in one word."])
    name: str | None = _NAME


class UserMessage(RequestModel):
    """A user message with text and images."""

    role: Literal["user"] = Field(description="Role of the author.")
    content: Content = Field(description=_CONTENT, examples=["What can you do?"])
    name: str | None = _NAME


class FunctionCall(RequestModel):
    """The function name and arguments of a tool call."""

    name: FunctionName = Field(description="Name of the function.", examples=["get_weather"])
    arguments: str = Field(description="JSON-encoded arguments.", examples=['{"city": "Paris"}'])


class ToolCall(RequestModel):
    """A tool call in an earlier assistant message."""

    id: CallId = Field(
        description="ID of the call. Use it as tool_call_id in the message that contains the result.",
        examples=["call_1"],
    )
    type: Literal["function"] = Field(description='Must be "function".')
    function: FunctionCall = Field(description="Function name and arguments.")


class AssistantMessage(RequestModel):
    """An earlier assistant message with text, tool calls or both."""

    role: Literal["assistant"] = Field(description="Role of the author.")
    content: TextContent | None = Field(
        None,
        description="Content of the message. Can be omitted if tool_calls is set.",
        examples=["I see a red circle."],
    )
    name: str | None = _NAME
    refusal: str | None = Field(
        None,
        description="Accepted for compatibility, but not included in the prompt.",
        examples=["I cannot."],
    )
    audio: Any = Field(None, description="Not supported; must be null.", examples=[None])
    tool_calls: list[ToolCall] | None = Field(
        None,
        max_length=_MAX_CALLS,
        description=f"Tool calls in the message. At most {_MAX_CALLS}.",
        examples=[[{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]],
    )
    function_call: Any = Field(
        None, description="Not supported; must be null. Use tool_calls.", examples=[None]
    )

    @field_validator("function_call", "audio")
    @classmethod
    def _only_null(cls, value: Any) -> Any:
        if value is None:
            return value
        raise PydanticCustomError(
            "unsupported_parameter",
            "function_call and audio are not supported and must be null. Use tool_calls for function calls.",
        )

    @model_validator(mode="after")
    def _check_content(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "content is required", {"fields": ("content",)})
        return self


class ToolMessage(RequestModel):
    """The result of a tool call."""

    role: Literal["tool"] = Field(description="Role of the author.")
    content: TextContent = Field(description=_CONTENT, examples=["18 degrees, sunny"])
    tool_call_id: CallId = Field(
        description="ID of the tool call that produced this result.", examples=["call_1"]
    )


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def check_tool_results(messages: list[ChatMessage]) -> None:
    """Raise an error unless each tool call is followed by its result and each result belongs to a call."""
    open_ids: list[str] = []
    for index, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in open_ids:
                tool_call_id = message.tool_call_id[:60]
                raise invalid_value(
                    f"messages[{index}].tool_call_id",
                    f"messages[{index}].tool_call_id is {tool_call_id!a}, but no preceding tool call with "
                    "this ID is waiting for a result.",
                )
            open_ids.remove(message.tool_call_id)
        elif open_ids:
            tool_call_id = open_ids[0][:60]
            raise invalid_value(
                f"messages[{index}]",
                f"messages[{index}] comes before the result of tool call {tool_call_id!a}. Insert the "
                "missing message with the role tool.",
            )
        elif isinstance(message, AssistantMessage):
            open_ids = [call.id for call in message.tool_calls or ()]
    if open_ids:
        tool_call_id = open_ids[0][:60]
        raise invalid_value(
            "messages",
            f"The tool call {tool_call_id!a} has no result. Send a message with the role tool and this "
            "tool_call_id.",
        )
