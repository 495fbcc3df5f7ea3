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
    "ReasoningItem",
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


class OutputRefusal(RequestModel):
    """A refusal that a model generated earlier."""

    type: Literal["refusal"] = Field(description="refusal")
    refusal: str = Field(description="Text of the refusal.", examples=["I cannot."])

    @property
    def text(self) -> str:
        return self.refusal


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
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None, description="Level of detail. See image_url.detail in the Chat Completions API."
    )

    @model_validator(mode="after")
    def _check_source(self) -> InputImage:
        if (self.image_url is None) == (self.file_id is None):
            raise PydanticCustomError(
                "invalid_value", "Set either image_url or file_id.", {"fields": ("image_url",)}
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, part: Any) -> Any:
        """Convert ``image_url`` from the object of the Chat Completions API, which some clients send."""
        if isinstance(part, dict) and isinstance(image_url := part.get("image_url"), dict):
            return {**part, "detail": image_url.get("detail"), "image_url": image_url.get("url")}
        return part


_Parts = Annotated[
    list[Annotated[InputText | InputImage | OutputRefusal, Field(discriminator="type")]],
    Field(max_length=_MAX_PARTS, fail_fast=True),
]
InputContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_Parts, Tag("<list>")], Discriminator(text_or_list)
]
_OutputParts = Annotated[
    list[Annotated[InputText | InputImage, Field(discriminator="type")]],
    Field(max_length=_MAX_PARTS, fail_fast=True),
]
OutputContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_OutputParts, Tag("<list>")], Discriminator(text_or_list)
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

    @model_validator(mode="after")
    def _check_images(self) -> MessageItem:
        if self.role == "user" or isinstance(self.content, str):
            return self
        for index, part in enumerate(self.content):
            if isinstance(part, InputImage):
                raise PydanticCustomError(
                    "unsupported_content",
                    "Images are only allowed in user messages and function call outputs.",
                    {"fields": ("content", index, "type")},
                )
        return self


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
    call_id: CallId | None = Field(
        None,
        description="ID of the function call that produced this result. Not included in the prompt.",
        examples=["call_1"],
    )
    output: OutputContent = Field(
        description="Output of the function: a string, or an ordered list of texts and images.",
        examples=["18 degrees"],
    )
    id: str | None = Field(None, description="Accepted, but ignored.", examples=["msg_1"])
    status: str | None = _STATUS


class ReasoningItem(RequestModel):
    """Reasoning from an earlier output. It is not included in the prompt."""

    type: Literal["reasoning"] = Field(description="The item is not included in the prompt.")


class ItemReference(RequestModel):
    """A reference to an input or output item of a stored response.

    References to reasoning items (``rs_...``) are dropped.
    """

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
    item = value if isinstance(value, dict) else vars(value) if isinstance(value, RequestModel) else {}
    if isinstance(kind := item.get("type"), str):
        return kind
    return "item_reference" if "id" in item and "role" not in item else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_item_kind),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
Input = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[Items, Tag("<list>")], Discriminator(text_or_list)
]
