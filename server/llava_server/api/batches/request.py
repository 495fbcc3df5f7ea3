"""The requests of /v1/batches, and of the lines in a batch's file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava_server.api.chat.request import Metadata
from llava_server.api.fields.base import RequestModel

__all__ = ["BatchLine", "BatchRequest"]


class BatchRequest(RequestModel):
    """Chat requests to be answered when nobody else waits."""

    input_file_id: str = Field(
        min_length=1,
        max_length=128,
        description="A file of POST /v1/files with purpose batch: one request a line.",
        examples=["file-3f1c09a2b44de8715a7c61f02b9d10ee"],
    )
    endpoint: Literal["/v1/chat/completions"] = Field(
        description="What the lines are requests to; only chats are taken."
    )
    completion_window: Literal["24h"] = Field(
        description="What has no answer after so long is left out, and the batch is expired."
    )
    metadata: Metadata | None = Field(
        None,
        description="Up to 16 pairs with keys of at most 64 and values of at most 512 characters; told back.",
        examples=[{"run": "7"}],
    )


class BatchLine(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: dict[str, Any]
