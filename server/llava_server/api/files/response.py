"""Stored files, lists of them, and deleted ones."""

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
    """A file of this key."""

    id: Annotated[str, doc("Of the file.", FILE_ID)]
    object: Literal["file"] = "file"
    bytes: Annotated[int, doc("Its size in bytes.", 2048, ge=0, le=2**40)]
    created_at: Annotated[Timestamp, doc("When it was stored, Unix seconds.", 1764241200)]
    expires_at: Annotated[Timestamp, doc("When it will be gone, Unix seconds.", 1764846000)]
    filename: Annotated[str, doc("As it was sent.", "requests.jsonl")]
    purpose: Annotated[
        str,
        doc(
            "batch: requests; batch_output: what a batch made of them.",
            "batch",
            extra_json_schema={"enum": ["batch", "batch_output"]},
        ),
    ]
    status: Annotated[Literal["processed"], doc("processed: it can be used at once.")] = "processed"


class FileList(ResponseModel, kw_only=True):
    """The files of this key, the latest first."""

    object: Literal["list"] = "list"
    data: Annotated[list[StoredFile], doc("All of them.", [_FILE])]
    has_more: Annotated[AlwaysFalse, doc("Always false: all are told at once.")] = False
    first_id: Annotated[str | UnsetType, doc("Of the first; left out without any.", FILE_ID)] = UNSET
    last_id: Annotated[str | UnsetType, doc("Of the last; left out without any.", FILE_ID)] = UNSET


class DeletedFile(ResponseModel):
    """What was deleted."""

    id: Annotated[str, doc("Of the file.", FILE_ID)]
    object: Literal["file"] = "file"
    deleted: Annotated[AlwaysTrue, doc("Always true: else the answer is an error.")] = True
