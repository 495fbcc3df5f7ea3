"""Batch objects and batch lists."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import UNSET, Meta, UnsetType

from llava_server.api.batches.request import BatchEndpoint
from llava_server.api.files.response import FILE_ID
from llava_server.response_model import Count, ResponseModel, Timestamp, doc

__all__ = ["BATCH_ID", "Batch", "BatchCounts", "BatchErrorLine", "BatchErrors", "BatchList"]

BATCH_ID = "batch_3f1c09a2b44de8715a7c61f02b9d10ee"
_ERROR_LINE = {
    "code": "invalid_value",
    "line": 3,
    "message": "url must be '/v1/responses', the endpoint of the batch (got '/v1/embeddings').",
    "param": "url",
}


class BatchErrorLine(ResponseModel):
    """An error in the input file, either on one line or in the file as a whole."""

    code: Annotated[str, doc("Machine-readable error code.", "invalid_value")]
    line: Annotated[
        Count | None, doc("Line number, starting at 1. Null if the error applies to the whole file.", 3)
    ]
    message: Annotated[
        str,
        doc(
            "Human-readable description of the error.",
            "custom_id: string should have at least 1 character (got '').",
        ),
    ]
    param: Annotated[str | None, doc("The field that caused the error.", "custom_id")]


class BatchErrors(ResponseModel, kw_only=True):
    """Errors in the input file of a batch that failed validation."""

    object: Literal["list"] = "list"
    data: Annotated[
        list[BatchErrorLine],
        doc("Up to 50 errors found in the file.", [_ERROR_LINE], min_length=1),
    ]


class BatchCounts(ResponseModel):
    """Progress of a batch."""

    total: Annotated[Count, doc("Total number of requests in the batch.", 100)]
    completed: Annotated[Count, doc("Number of requests that completed.", 40)]
    failed: Annotated[Count, doc("Number of requests that failed.", 1)]


_STATUSES = ["validating", "in_progress", "completed", "failed", "expired", "cancelling", "cancelled"]


def _when(state: str) -> Meta:
    return doc(
        f"Unix timestamp (in seconds) for when the status changed to {state}. Null until then.",
        1764241260,
    )


class Batch(ResponseModel, kw_only=True):
    """A batch that was created with this API key."""

    id: Annotated[str, doc("ID of the batch.", BATCH_ID)]
    object: Literal["batch"] = "batch"
    endpoint: Annotated[
        str,
        doc(
            "Endpoint used for all requests in the batch.",
            "/v1/chat/completions",
            extra_json_schema={"enum": list(get_args(BatchEndpoint))},
        ),
    ]
    errors: Annotated[
        BatchErrors | None, doc("Errors found in the input file. Null if the file is valid.", None)
    ]
    input_file_id: Annotated[str, doc("ID of the input file.", FILE_ID)]
    completion_window: Annotated[Literal["24h"], doc("Time limit for the batch.")] = "24h"
    status: Annotated[
        str, doc("Current status of the batch.", "in_progress", extra_json_schema={"enum": _STATUSES})
    ]
    output_file_id: Annotated[
        str | None,
        doc(
            "ID of the file that contains the responses, one per line. Set when the batch ends if at least "
            "one request completed.",
            FILE_ID,
        ),
    ]
    error_file_id: Annotated[
        str | None,
        doc(
            "ID of the file that contains the failed requests. Set when the batch ends if at least one "
            "request failed.",
            FILE_ID,
        ),
    ]
    created_at: Annotated[
        Timestamp, doc("Unix timestamp (in seconds) for when the batch was created.", 1764241200)
    ]
    expires_at: Annotated[
        Timestamp,
        doc(
            "Unix timestamp (in seconds) for when the batch expires. Requests that are unfinished at that "
            "time are skipped.",
            1764327600,
        ),
    ]
    in_progress_at: Annotated[Timestamp | None, _when("in_progress")]
    completed_at: Annotated[Timestamp | None, _when("completed")]
    failed_at: Annotated[Timestamp | None, _when("failed")]
    expired_at: Annotated[Timestamp | None, _when("expired")]
    cancelling_at: Annotated[Timestamp | None, _when("cancelling")]
    cancelled_at: Annotated[Timestamp | None, _when("cancelled")]
    request_counts: Annotated[
        BatchCounts,
        doc("Request counts by outcome.", {"total": 100, "completed": 40, "failed": 1}),
    ]
    metadata: Annotated[dict[str, str] | None, doc("Metadata from the request.", {"run": "7"})]


class BatchList(ResponseModel, kw_only=True):
    """A page of the batches that were created with this API key, newest first."""

    object: Literal["list"] = "list"
    data: Annotated[list[Batch], doc("The batches on this page, up to the requested limit.", [])]
    has_more: Annotated[
        bool, doc("Whether there are more batches. To get the next page, set after to last_id.")
    ]
    first_id: Annotated[
        str | UnsetType, doc("ID of the first batch on this page. Omitted if the list is empty.", BATCH_ID)
    ] = UNSET
    last_id: Annotated[
        str | UnsetType, doc("ID of the last batch on this page. Omitted if the list is empty.", BATCH_ID)
    ] = UNSET
