"""Input items for /v1/responses: messages, function calls and their results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.fields.base import RequestModel, text_or_list
from llava_server.api.fields.messages import CallId, FunctionName

__all__ = [
    "MAX_ITEMS",
    "CallItem",
    "Input",
    "InputImage",
    "InputText",
    "Item",
    "ItemReference",
    "MessageItem",
    "ResultItem",
]

MAX_ITEMS = 1024
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
    image_url: str | None = Field(
        None,
        description="The image as a data URL: data:image/png;base64,...",
        examples=["data:image/png;base64,iVBO..."],
    )
    file_id: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="ID of a file that contains the image, as an alternative to image_url.",
        examples=[None],
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Level of detail. See image_url.detail in the Chat Completions API."
    )

    @model_validator(mode="after")
    def _check_source(self) -> InputImage:
        if (self.image_url is None) == (self.file_id is None):
            raise PydanticCustomError(
                "invalid_value", "Set either image_url or file_id.", {"fields": ("image_url",)}
            )
        return self


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


class ItemReference(RequestModel):
    """A reference to an input or output item of a stored response."""

    type: Literal["item_reference"] | None = Field(
        None, description='Must be "item_reference". Can be omitted if the item has no role.'
    )
    id: str = Field(
        max_length=128,
        description="ID of the item, from the output of a response or from GET "
        "/v1/responses/{id}/input_items.",
        examples=["msg_3f1c09a2b44de8715a7c61f02b9d10ee_0"],
    )


def _item_kind(value: Any) -> str:
    is_dict = isinstance(value, dict)
    kind = value.get("type") if is_dict else getattr(value, "type", None)
    if isinstance(kind, str):
        return kind
    is_reference = is_dict and "id" in value and "role" not in value or isinstance(value, ItemReference)
    return "item_reference" if is_reference else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_item_kind),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
Input = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[Items, Tag("<list>")], Discriminator(text_or_list)
]
