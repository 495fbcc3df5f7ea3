"""File objects, file lists and the result of a deletion."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, UnsetType

from llava_server.response_model import AlwaysTrue, ResponseModel, Timestamp, doc

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
    """A file that belongs to this API key."""

    id: Annotated[str, doc("ID of the file.", FILE_ID)]
    object: Literal["file"] = "file"
    bytes: Annotated[int, doc("Size of the file in bytes.", 2048, ge=0, le=2**40)]
    created_at: Annotated[
        Timestamp, doc("Unix timestamp (in seconds) for when the file was created.", 1764241200)
    ]
    expires_at: Annotated[
        Timestamp, doc("Unix timestamp (in seconds) for when the file will be deleted.", 1764846000)
    ]
    filename: Annotated[str, doc("Name of the file.", "requests.jsonl")]
    purpose: Annotated[
        str,
        doc(
            'Purpose from the request, or "batch_output" for the result files of a batch.',
            "batch",
            extra_json_schema={"enum": ["batch", "batch_output", "vision", "user_data", "assistants"]},
        ),
    ]
    status: Annotated[Literal["processed"], doc('Always "processed". The file can be used immediately.')] = (
        "processed"
    )


class FileList(ResponseModel, kw_only=True):
    """A page of the files that belong to this API key."""

    object: Literal["list"] = "list"
    data: Annotated[list[StoredFile], doc("The files on this page.", [_FILE])]
    has_more: Annotated[
        bool, doc("Whether there are more files. To get the next page, set after to last_id.")
    ] = False
    first_id: Annotated[
        str | UnsetType, doc("ID of the first file. Omitted if the list is empty.", FILE_ID)
    ] = UNSET
    last_id: Annotated[
        str | UnsetType, doc("ID of the last file. Omitted if the list is empty.", FILE_ID)
    ] = UNSET


class DeletedFile(ResponseModel):
    """The result of deleting a file."""

    id: Annotated[str, doc("ID of the file.", FILE_ID)]
    object: Literal["file"] = "file"
    deleted: Annotated[AlwaysTrue, doc("Always true. Failures are reported as errors.")] = True
