"""Requests to /v1/batches, and the lines of a batch's input file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from llava_server.api.chat.request import Metadata
from llava_server.api.compatibility.completions import BATCH
from llava_server.api.fields.base import RequestModel
from llava_server.api.json_limits import TOKEN_LIMITS

__all__ = ["BatchEndpoint", "BatchLine", "BatchRequest"]

BatchEndpoint = Literal["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings"]


class BatchRequest(RequestModel):
    """A request to create a batch."""

    rules = BATCH

    input_file_id: str = Field(
        min_length=1,
        max_length=128,
        description='ID of a file uploaded with the purpose "batch". The file must contain one request per '
        "line.",
        examples=["file-3f1c09a2b44de8715a7c61f02b9d10ee"],
    )
    endpoint: BatchEndpoint = Field(description="Endpoint used for all requests in the batch.")
    completion_window: Literal["24h"] = Field(
        description="Time limit for the batch. When it elapses, the batch expires and unfinished requests "
        "are skipped."
    )
    metadata: Metadata | None = Field(
        None,
        description="Up to 16 key-value pairs, which are returned with the batch. Keys can be up to 64 "
        "characters long, and values up to 512 characters.",
        examples=[{"run": "7"}],
    )


class BatchLine(RequestModel):
    """A line in the input file. ``body`` is a request that has further limits of its own."""

    json_limits = TOKEN_LIMITS
    model_config = ConfigDict(extra="forbid")

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: BatchEndpoint
    body: dict[str, Any]
