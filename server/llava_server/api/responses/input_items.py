"""What /v1/responses takes as input: messages, calls of functions and what came of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llava_server.api.fields.base import RequestModel, text_or_list
from llava_server.api.fields.messages import CallId, FunctionName

__all__ = ["CallItem", "Input", "InputImage", "MessageItem", "ResultItem"]

_MAX_ITEMS = 1024
_MAX_PARTS = 256
_STATUS: Any = Field(None, description="Accepted; it makes no difference.", examples=["completed"])


class InputText(RequestModel):
    """A piece of text."""

    type: Literal["input_text", "output_text"] = Field(description="Of a question, or of an earlier answer.")
    text: str = Field(description="Plain text.", examples=["What is in the picture?"])


class InputImage(RequestModel):
    """A picture."""

    type: Literal["input_image"] = Field(description="input_image")
    image_url: str = Field(
        description="The picture itself: data:image/png;base64,...",
        examples=["data:image/png;base64,iVBO..."],
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="How closely to look, as in a chat's image_url.detail."
    )


InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]
InputParts = Annotated[list[InputPart], Field(min_length=1, max_length=_MAX_PARTS)]
InputContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[InputParts, Tag("<list>")], Discriminator(text_or_list)
]


class MessageItem(RequestModel):
    """Something that was said."""

    type: Literal["message"] = Field("message", description="message; may be left out.")
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Who speaks.")
    content: InputContent = Field(description="Text, or a list of parts in reading order.", examples=["Hi"])
    id: str | None = Field(None, description="Accepted; it makes no difference.", examples=["msg_1"])
    status: str | None = _STATUS
    phase: str | None = Field(
        None, description="Accepted; it makes no difference.", examples=["final_answer"]
    )


class CallItem(RequestModel):
    """A call of a function that an earlier answer made."""

    type: Literal["function_call"] = Field(description="function_call")
    call_id: CallId = Field(description="Its id in that answer.", examples=["call_1"])
    name: FunctionName = Field(description="The function's name.", examples=["get_weather"])
    arguments: str = Field(description="Its arguments as JSON in a string.", examples=['{"city": "Paris"}'])
    id: str | None = Field(None, description="Accepted; it makes no difference.", examples=["msg_1"])
    status: str | None = _STATUS


class ResultItem(RequestModel):
    """What came of a call."""

    type: Literal["function_call_output"] = Field(description="function_call_output")
    call_id: CallId = Field(description="The call's id.", examples=["call_1"])
    output: InputContent = Field(description="What the function gave: text.", examples=["18 degrees"])
    id: str | None = Field(None, description="Accepted; it makes no difference.", examples=["msg_1"])
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
