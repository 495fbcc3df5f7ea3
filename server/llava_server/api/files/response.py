"""File objects, file lists and the result of a deletion."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, UnsetType

from llava_server.response_model import AlwaysFalse, AlwaysTrue, ResponseModel, Timestamp, doc

__all__ = ["FILE_ID", "DeletedFile", "FileList", "StoredFile"]

FILE_ID = "file-3f1c09a2b44de8715a7c61f02b9d10ee"
_FILE = {
    "id": FILE_ID,
    "object": "file",
    "bytes": 2048,
    "created_at": 1764241200,
    "expires_at": 1764846000,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
}


class StoredFile(ResponseModel, kw_only=True):
    """A file of the API key."""

    id: Annotated[str, doc("ID of the file.", FILE_ID)]
    object: Literal["file"] = "file"
    bytes: Annotated[int, doc("Size of the file in bytes.", 2048, ge=0, le=2**40)]
    created_at: Annotated[Timestamp, doc("Unix timestamp (seconds) of the upload.", 1764241200)]
    expires_at: Annotated[
        Timestamp, doc("Unix timestamp (seconds) at which the file is deleted.", 1764846000)
    ]
    filename: Annotated[str, doc("Name of the uploaded file.", "requests.jsonl")]
    purpose: Annotated[
        str,
        doc(
            "batch: requests of a batch; batch_output: results of a batch.",
            "batch",
            extra_json_schema={"enum": ["batch", "batch_output"]},
        ),
    ]
    status: Annotated[Literal["processed"], doc("Always processed. The file can be used immediately.")] = (
        "processed"
    )


class FileList(ResponseModel, kw_only=True):
    """The files of the API key, newest first."""

    object: Literal["list"] = "list"
    data: Annotated[list[StoredFile], doc("All files.", [_FILE])]
    has_more: Annotated[AlwaysFalse, doc("Always false. The list is never paged.")] = False
    first_id: Annotated[
        str | UnsetType, doc("ID of the first file; omitted if the list is empty.", FILE_ID)
    ] = UNSET
    last_id: Annotated[
        str | UnsetType, doc("ID of the last file; omitted if the list is empty.", FILE_ID)
    ] = UNSET


class DeletedFile(ResponseModel):
    """The result of deleting a file."""

    id: Annotated[str, doc("ID of the file.", FILE_ID)]
    object: Literal["file"] = "file"
    deleted: Annotated[AlwaysTrue, doc("Always true. Failures are reported as errors.")] = True
