"""Input items for /v1/responses: messages, function calls and their results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llava_server.api.fields.base import RequestModel, text_or_list
from llava_server.api.fields.messages import CallId, FunctionName

__all__ = ["CallItem", "Input", "InputImage", "MessageItem", "ResultItem"]

_MAX_ITEMS = 1024
_MAX_PARTS = 256
_STATUS: Any = Field(None, description="Accepted, but ignored.", examples=["completed"])


class InputText(RequestModel):
    """A text part."""

    type: Literal["input_text", "output_text"] = Field(
        description='"input_text" for input, "output_text" for text that the model generated earlier.'
    )
    text: str = Field(description="Plain text.", examples=["What is in the image?"])


class InputImage(RequestModel):
    """An image part."""

    type: Literal["input_image"] = Field(description="input_image")
    image_url: str = Field(
        description="The image as a data URL: data:image/png;base64,...",
        examples=["data:image/png;base64,iVBO..."],
    )
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None, description="Level of detail. See image_url.detail in the Chat Completions API."
    )

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, part: Any) -> Any:
        """Convert ``image_url`` from the object of the Chat Completions API, which some clients send."""
        if isinstance(part, dict) and isinstance(image_url := part.get("image_url"), dict):
            return {**part, "detail": image_url.get("detail"), "image_url": image_url.get("url")}
        return part


InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]
InputParts = Annotated[list[InputPart], Field(min_length=1, max_length=_MAX_PARTS)]
InputContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[InputParts, Tag("<list>")], Discriminator(text_or_list)
]


class MessageItem(RequestModel):
    """A message in the conversation."""

    type: Literal["message"] = Field("message", description='Must be "message". Can be omitted.')
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Role of the author.")
    content: InputContent = Field(
        description="A string, or an ordered list of content parts.", examples=["Hi"]
    )
    id: str | None = Field(None, description="Accepted, but ignored.", examples=["msg_1"])
    status: str | None = _STATUS
    phase: str | None = Field(None, description="Accepted, but ignored.", examples=["final_answer"])


class CallItem(RequestModel):
    """A function call from an earlier output."""

    type: Literal["function_call"] = Field(description="function_call")
    call_id: CallId = Field(
        description="ID of the call. Use it as call_id in the function_call_output item.", examples=["call_1"]
    )
    name: FunctionName = Field(description="Name of the function.", examples=["get_weather"])
    arguments: str = Field(description="JSON-encoded arguments.", examples=['{"city": "Paris"}'])
    id: str | None = Field(None, description="Accepted, but ignored.", examples=["msg_1"])
    status: str | None = _STATUS


class ResultItem(RequestModel):
    """The result of a function call."""

    type: Literal["function_call_output"] = Field(description="function_call_output")
    call_id: CallId = Field(
        description="ID of the function call that produced this result.", examples=["call_1"]
    )
    output: InputContent = Field(description="Output of the function, as text.", examples=["18 degrees"])
    id: str | None = Field(None, description="Accepted, but ignored.", examples=["msg_1"])
    status: str | None = _STATUS


def _item_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_item_kind),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=_MAX_ITEMS)]
Input = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[Items, Tag("<list>")], Discriminator(text_or_list)
]
