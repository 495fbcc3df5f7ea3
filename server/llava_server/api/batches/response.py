"""Batches, as they stand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.files.response import FILE_ID
from llava_server.api.openapi.schema import Count, Index, Moment, Shape, absent

__all__ = ["Batch", "BatchList"]

_ID = "batch_3f1c09a2b44de8715a7c61f02b9d10ee"
When = Moment | None


class BatchErrorLine(Shape):
    """What is wrong with a line, or with all of the file."""

    code: str = Field(description="For programs, as in other errors.", examples=["invalid_value"])
    line: Index | None = Field(description="The line, from 1; null: all of the file.", examples=[3])
    message: str = Field(description="For people.", examples=["custom_id: field required"])
    param: str | None = Field(description="The field that is to blame.", examples=["custom_id"])


class BatchErrors(Shape):
    """Why a batch has failed before it began."""

    object: Literal["list"] = Field(description="list")
    data: list[BatchErrorLine] = Field(
        min_length=1,
        description="The first wrong lines.",
        examples=[
            [{"code": "invalid_value", "line": 3, "message": "custom_id: is used twice", "param": None}]
        ],
    )


class BatchCounts(Shape):
    """How far a batch is."""

    total: Count = Field(description="Lines of its file.", examples=[100])
    completed: Count = Field(description="Lines that are answered.", examples=[40])
    failed: Count = Field(description="Lines whose answer is an error.", examples=[1])


def _when(state: str) -> When:
    field: When = Field(
        description=f"When it became {state}, Unix seconds; null: it has not.", examples=[1764241260]
    )
    return field


class Batch(Shape):
    """A batch of this key."""

    id: str = Field(description="Of the batch.", examples=[_ID])
    object: Literal["batch"] = Field(description="batch")
    endpoint: Literal["/v1/chat/completions"] = Field(description="What its lines are requests to.")
    errors: BatchErrors | None = Field(
        description="Why it has failed before it began; else null.", examples=[None]
    )
    input_file_id: str = Field(description="The file of its requests.", examples=[FILE_ID])
    completion_window: Literal["24h"] = Field(description="How long it may take.")
    status: Literal[
        "validating", "in_progress", "completed", "failed", "expired", "cancelling", "cancelled"
    ] = Field(description="Where it stands.", examples=["in_progress"])
    output_file_id: str | None = Field(
        description="The answers, one a line, once it has ended; null without any.", examples=[FILE_ID]
    )
    error_file_id: str | None = Field(
        description="The lines whose answer is an error, once it has ended; null without any.",
        examples=[FILE_ID],
    )
    created_at: Moment = Field(description="When it was made, Unix seconds.", examples=[1764241200])
    expires_at: Moment = Field(
        description="When what has no answer yet is left out, Unix seconds.", examples=[1764327600]
    )
    in_progress_at: When = _when("in_progress")
    completed_at: When = _when("completed")
    failed_at: When = _when("failed")
    expired_at: When = _when("expired")
    cancelling_at: When = _when("cancelling")
    cancelled_at: When = _when("cancelled")
    request_counts: BatchCounts = Field(
        description="How far it is.", examples=[{"total": 100, "completed": 40, "failed": 1}]
    )
    metadata: dict[str, str] | None = Field(description="As it was sent.", examples=[{"run": "7"}])


class BatchList(Shape):
    """A page of the batches of this key, the latest first."""

    object: Literal["list"] = Field(description="list")
    data: list[Batch] = Field(description="At most limit of them.", examples=[[]])
    has_more: bool = Field(description="Whether a page comes after this one: after=last_id asks for it.")
    first_id: str = Field(
        default_factory=absent, description="Of the first; left out without any.", examples=[_ID]
    )
    last_id: str = Field(
        default_factory=absent, description="Of the last; left out without any.", examples=[_ID]
    )
