"""Messages of a chat request: text, images, tool calls and tool results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from llava_server.api.fields.base import RequestModel, text_or_list

__all__ = [
    "AssistantMessage",
    "CallId",
    "ChatMessage",
    "FilePart",
    "FunctionMessage",
    "FunctionName",
    "ImagePart",
    "ImageUrl",
    "SystemMessage",
    "TextPart",
    "ToolCall",
    "ToolMessage",
    "UserMessage",
]

_MAX_PARTS = 256
_MAX_CALLS = 64

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = str  # not limited, because some gateways encode more than an ID in it


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
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None,
        description='Level of detail. "low" encodes the whole image as a single tile, which requires the '
        'fewest tokens. "high", "original" and "auto" (default) also encode tiles at a higher resolution if '
        "the model supports this (LLaVA-1.6). For LLaVA-1.5, which uses a single resolution, the value has "
        "no effect.",
        examples=["low"],
    )


def _from_plain_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class _ImageSource(RequestModel):
    """A part with an image. ``param`` is the name of its field in another API's request, else None."""

    _param: str | None = PrivateAttr(None)

    @property
    def param(self) -> str | None:
        return self._param

    def named(self, param: str) -> Self:
        """Return the part with the name of its field in another API's request."""
        self._param = param
        return self


class ImagePart(_ImageSource):
    """An image part."""

    type: Literal["image_url"] = Field(description="image_url")
    image_url: Annotated[
        ImageUrl, BeforeValidator(_from_plain_url, json_schema_input_type=ImageUrl | str)
    ] = Field(description="URL of the image and its level of detail, or only the URL.")

    @classmethod
    def converted(cls, url: str, detail: Any = None, *, param: str) -> ImagePart:
        """Return the part for an image in another API's request, where its field is named ``param``."""
        return cls(type="image_url", image_url=ImageUrl(url=url, detail=detail)).named(param)


class RefusalPart(RequestModel):
    """A refusal part of an earlier assistant message."""

    type: Literal["refusal"] = Field(description="refusal")
    refusal: str = Field(description="Text of the refusal.", examples=["I cannot."])

    @property
    def text(self) -> str:
        return self.refusal


class ReasoningPart(RequestModel):
    """Reasoning of an earlier assistant message. It is not included in the prompt."""

    type: Literal["thinking", "redacted_thinking", "reasoning"] = Field(
        description="The part is not included in the prompt."
    )


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
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None, description="Extension. Level of detail, as in image_url.detail.", examples=["low"]
    )

    @model_validator(mode="after")
    def _check_source(self) -> FileReference:
        if (self.file_id is None) == (self.file_data is None):
            raise PydanticCustomError(
                "invalid_value", "Set either file_id or file_data.", {"fields": ("file_id",)}
            )
        return self


class FilePart(_ImageSource):
    """An image in a file."""

    type: Literal["file"] = Field(description="file")
    file: FileReference = Field(
        description="The file that contains the image.",
        examples=[{"file_id": "file-3f1c09a2b44de8715a7c61f02b9d10ee"}],
    )


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]
AssistantPart = Annotated[
    TextPart | ImagePart | FilePart | RefusalPart | ReasoningPart, Field(discriminator="type")
]
_Parts = Annotated[list[Part], Field(max_length=_MAX_PARTS, fail_fast=True)]
_AssistantParts = Annotated[list[AssistantPart], Field(max_length=_MAX_PARTS, fail_fast=True)]
Content = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_Parts, Tag("<list>")], Discriminator(text_or_list)
]


def _only_text(content: Any) -> Any:
    if not isinstance(content, str) and any(isinstance(part, ImagePart | FilePart) for part in content):
        raise PydanticCustomError(
            "unsupported_content", "Images are only allowed in user messages and tool results."
        )
    return content


TextContent = Annotated[Content, AfterValidator(_only_text)]
AssistantContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_AssistantParts, Tag("<list>")],
    Discriminator(text_or_list),
    AfterValidator(_only_text),
]

_CONTENT = "A string, or an ordered list of content parts. null is equivalent to an empty string."
_NAME: Any = Field(
    None, description="Accepted for compatibility, but not included in the prompt.", examples=["Ada"]
)


class _Message(RequestModel):
    """A message with text and possibly images."""

    role: Any
    content: Any

    @property
    def parts(self) -> list[str | ImagePart | FilePart]:
        """Texts and images of the message in reading order, without reasoning."""
        if isinstance(self.content, str):
            return [self.content]
        return [
            part if isinstance(part, ImagePart | FilePart) else part.text
            for part in self.content or ()
            if not isinstance(part, ReasoningPart)
        ]


class SystemMessage(_Message):
    """A system message. At the start of the conversation, it replaces the model's default system prompt."""

    role: Literal["system", "developer"] = Field(
        description='Role of the author. "system" and "developer" are equivalent.'
    )
    content: TextContent | None = Field(description=_CONTENT, examples=["Answer in one word."])
    name: str | None = _NAME


class UserMessage(_Message):
    """A user message with text and images."""

    role: Literal["user"] = Field(description="Role of the author.")
    content: Content | None = Field(description=_CONTENT, examples=["What can you do?"])
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
    type: Literal["function"] = Field("function", description='Must be "function". Can be omitted.')
    function: FunctionCall = Field(description="Function name and arguments.")


class AssistantMessage(_Message):
    """An earlier assistant message with text, tool calls or both."""

    role: Literal["assistant"] = Field(description="Role of the author.")
    content: AssistantContent | None = Field(
        None,
        description="Content of the message, which precedes its tool calls. Can be omitted.",
        examples=["I see a red circle."],
    )
    name: str | None = _NAME
    refusal: str | None = Field(
        None,
        description="Used as the text of the message if content is null, otherwise ignored.",
        examples=["I cannot."],
    )
    prefix: bool | None = Field(
        None,
        description="Extension of Mistral's and DeepSeek's APIs. If true in the last message, the model "
        "continues this message. See continue_final_message.",
    )
    audio: Any = Field(None, description="Not supported; must be null.", examples=[None])
    tool_calls: list[ToolCall] | None = Field(
        None,
        max_length=_MAX_CALLS,
        fail_fast=True,
        description=f"Tool calls in the message. At most {_MAX_CALLS}.",
        examples=[[{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]],
    )
    function_call: FunctionCall | None = Field(
        None, description="A call in the format that tool_calls replaced. It follows the tool calls."
    )

    @field_validator("audio")
    @classmethod
    def _only_null(cls, value: Any) -> Any:
        if value is None:
            return value
        raise PydanticCustomError(
            "unsupported_parameter",
            "audio is not supported and must be null. Send a transcript of the audio as content.",
        )

    @property
    def parts(self) -> list[str | ImagePart | FilePart]:
        """Texts of the message in reading order, without reasoning and tool calls."""
        return [self.refusal] if self.content is None and self.refusal else super().parts

    @property
    def calls(self) -> list[ToolCall]:
        """Tool calls of the message, including a call in the older format."""
        calls = list(self.tool_calls or ())
        if self.function_call is not None:
            calls.append(ToolCall(id="", type="function", function=self.function_call))
        return calls


class ToolMessage(_Message):
    """The result of a tool call, with text and images."""

    role: Literal["tool"] = Field(description="Role of the author.")
    content: Content | None = Field(description=_CONTENT, examples=["18 degrees, sunny"])
    tool_call_id: CallId = Field(
        description="ID of the tool call that produced this result. Not included in the prompt.",
        examples=["call_1"],
    )


class FunctionMessage(_Message):
    """The result of a function_call. The role tool replaced this format."""

    role: Literal["function"] = Field(description="Role of the author.")
    content: Content | None = Field(description=_CONTENT, examples=["18 degrees, sunny"])
    name: str = Field(description="Name of the function. Not included in the prompt.", examples=["f"])


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
