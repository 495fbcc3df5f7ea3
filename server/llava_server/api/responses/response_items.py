"""What a response is made of: messages, and calls of functions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llava_server.api.chat.logprobs import TokenLogprob
from llava_server.api.openapi.schema import Shape

__all__ = ["MESSAGE_EXAMPLE", "TEXT_EXAMPLE", "OutputItem", "OutputText"]

_NUMBER = "3f1c09a2b44de8715a7c61f02b9d10ee"
ItemStatus = Literal["in_progress", "completed", "incomplete"]
_STATUS = "in_progress: it grows; incomplete: max_output_tokens or the context were used up in it."

TEXT_EXAMPLE: dict[str, Any] = {
    "type": "output_text",
    "text": "A red circle.",
    "annotations": [],
    "logprobs": [],
}
MESSAGE_EXAMPLE: dict[str, Any] = {
    "id": f"msg_{_NUMBER}_0",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [TEXT_EXAMPLE],
}


class OutputText(Shape):
    """A text that the model wrote."""

    type: Literal["output_text"] = Field(description="output_text")
    text: str = Field(description="The text so far.", examples=["A red circle."])
    annotations: list[str] = Field(max_length=0, description="Always empty: nothing is cited.", examples=[[]])
    logprobs: list[TokenLogprob] = Field(
        description="Of its tokens so far; empty unless include asked for them.", examples=[[]]
    )


class OutputMessage(Shape):
    """Something that the model said."""

    id: str = Field(description="Of the item.", examples=[f"msg_{_NUMBER}_0"])
    type: Literal["message"] = Field(description="message")
    status: ItemStatus = Field(description=_STATUS)
    role: Literal["assistant"] = Field(description="assistant")
    content: list[OutputText] = Field(
        max_length=1, description="Its text; nothing yet where it opens.", examples=[[TEXT_EXAMPLE]]
    )


class OutputCall(Shape):
    """A function that the caller is to run."""

    id: str = Field(description="Of the item.", examples=[f"fc_{_NUMBER}_0"])
    type: Literal["function_call"] = Field(description="function_call")
    status: ItemStatus = Field(description=_STATUS)
    name: str = Field(description="One of the request's functions.", examples=["get_weather"])
    arguments: str = Field(
        description="An object as JSON, which keeps to the function's schema; as far as it has come.",
        examples=['{"city":"Paris"}'],
    )
    call_id: str = Field(
        description="Names the call in the item function_call_output that brings its result.",
        examples=["call_0f3c5d2a91b84e6f7a10c2d4"],
    )


OutputItem = Annotated[OutputMessage | OutputCall, Field(discriminator="type")]
