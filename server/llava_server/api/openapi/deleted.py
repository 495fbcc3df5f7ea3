"""What is said of an answer that was deleted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.openapi.schema import Shape

__all__ = ["DeletedChat", "DeletedResponse"]


class DeletedChat(Shape):
    """A chat's answer that cannot be read any more."""

    id: str = Field(description="Of the answer.", examples=["chatcmpl-3f1c09a2b44de8715a7c61f02b9d10ee"])
    object: Literal["chat.completion.deleted"] = Field(description="chat.completion.deleted")
    deleted: Literal[True] = Field(description="Always true: else the answer is an error.")


class DeletedResponse(Shape):
    """A response that cannot be read any more."""

    id: str = Field(description="Of the response.", examples=["resp_3f1c09a2b44de8715a7c61f02b9d10ee"])
    object: Literal["response"] = Field(description="response")
    deleted: Literal[True] = Field(description="Always true: else the answer is an error.")
