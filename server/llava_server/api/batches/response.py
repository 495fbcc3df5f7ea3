"""Batches and lists of them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from llava_server.api.files.response import FILE_ID
from llava_server.response_model import Count, ResponseModel, Timestamp, doc

__all__ = ["BATCH_ID", "Batch", "BatchCounts", "BatchErrorLine", "BatchErrors", "BatchList"]

BATCH_ID = "batch_3f1c09a2b44de8715a7c61f02b9d10ee"
_ERROR_LINE = {"code": "invalid_value", "line": 3, "message": "custom_id: is used twice", "param": None}


class BatchErrorLine(ResponseModel):
    """What is wrong with a line, or with all of the file."""

    code: Annotated[str, doc("For programs, as in other errors.", "invalid_value")]
    line: Annotated[Count | None, doc("The line, from 1; null: all of the file.", 3)]
    message: Annotated[str, doc("For people.", "custom_id: field required")]
    param: Annotated[str | None, doc("The field that is to blame.", "custom_id")]


class BatchErrors(ResponseModel, kw_only=True):
    """Why a batch has failed before it began."""

    object: Literal["list"] = "list"
    data: Annotated[list[BatchErrorLine], doc("The first wrong lines.", [_ERROR_LINE], min_length=1)]


class BatchCounts(ResponseModel):
    """How far a batch is."""

    total: Annotated[Count, doc("Lines of its file.", 100)]
    completed: Annotated[Count, doc("Lines that are answered.", 40)]
    failed: Annotated[Count, doc("Lines whose answer is an error.", 1)]


_STATUSES = ["validating", "in_progress", "completed", "failed", "expired", "cancelling", "cancelled"]


def _when(state: str) -> Meta:
    return doc(f"When it became {state}, Unix seconds; null: it has not.", 1764241260)


class Batch(ResponseModel, kw_only=True):
    """A batch of this key."""

    id: Annotated[str, doc("Of the batch.", BATCH_ID)]
    object: Literal["batch"] = "batch"
    endpoint: Annotated[Literal["/v1/chat/completions"], doc("What its lines are requests to.")] = (
        "/v1/chat/completions"
    )
    errors: Annotated[BatchErrors | None, doc("Why it has failed before it began; else null.", None)]
    input_file_id: Annotated[str, doc("The file of its requests.", FILE_ID)]
    completion_window: Annotated[Literal["24h"], doc("How long it may take.")] = "24h"
    status: Annotated[str, doc("Where it stands.", "in_progress", extra_json_schema={"enum": _STATUSES})]
    output_file_id: Annotated[
        str | None, doc("The answers, one a line, once it has ended; null without any.", FILE_ID)
    ]
    error_file_id: Annotated[
        str | None,
        doc("The lines whose answer is an error, once it has ended; null without any.", FILE_ID),
    ]
    created_at: Annotated[Timestamp, doc("When it was made, Unix seconds.", 1764241200)]
    expires_at: Annotated[
        Timestamp, doc("When what has no answer yet is left out, Unix seconds.", 1764327600)
    ]
    in_progress_at: Annotated[Timestamp | None, _when("in_progress")]
    completed_at: Annotated[Timestamp | None, _when("completed")]
    failed_at: Annotated[Timestamp | None, _when("failed")]
    expired_at: Annotated[Timestamp | None, _when("expired")]
    cancelling_at: Annotated[Timestamp | None, _when("cancelling")]
    cancelled_at: Annotated[Timestamp | None, _when("cancelled")]
    request_counts: Annotated[
        BatchCounts, doc("How far it is.", {"total": 100, "completed": 40, "failed": 1})
    ]
    metadata: Annotated[dict[str, str] | None, doc("As it was sent.", {"run": "7"})]


class BatchList(ResponseModel, kw_only=True):
    """A page of the batches of this key, the latest first."""

    object: Literal["list"] = "list"
    data: Annotated[list[Batch], doc("At most limit of them.", [])]
    has_more: Annotated[bool, doc("Whether a page comes after this one: after=last_id asks for it.")]
    first_id: Annotated[str | UnsetType, doc("Of the first; left out without any.", BATCH_ID)] = UNSET
    last_id: Annotated[str | UnsetType, doc("Of the last; left out without any.", BATCH_ID)] = UNSET
