"""Stored files, and what is said of what was deleted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.openapi.schema import Moment, Shape, absent

__all__ = ["DeletedFile", "FileList", "StoredFile"]

FILE_ID = "file-3f1c09a2b44de8715a7c61f02b9d10ee"
_MAX_BYTES = 2**40
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


class StoredFile(Shape):
    """A file of this key."""

    id: str = Field(description="Of the file.", examples=[FILE_ID])
    object: Literal["file"] = Field(description="file")
    bytes: int = Field(ge=0, le=_MAX_BYTES, description="Its size in bytes.", examples=[2048])
    created_at: Moment = Field(description="When it was stored, Unix seconds.", examples=[1764241200])
    expires_at: Moment = Field(description="When it will be gone, Unix seconds.", examples=[1764846000])
    filename: str = Field(description="As it was sent.", examples=["requests.jsonl"])
    purpose: Literal["batch", "batch_output"] = Field(
        description="batch: requests; batch_output: what a batch made of them."
    )
    status: Literal["processed"] = Field(description="processed: it can be used at once.")


class FileList(Shape):
    """The files of this key, the latest first."""

    object: Literal["list"] = Field(description="list")
    data: list[StoredFile] = Field(description="All of them.", examples=[[_FILE]])
    has_more: Literal[False] = Field(description="Always false: all are told at once.")
    first_id: str = Field(
        default_factory=absent, description="Of the first; left out without any.", examples=[FILE_ID]
    )
    last_id: str = Field(
        default_factory=absent, description="Of the last; left out without any.", examples=[FILE_ID]
    )


class DeletedFile(Shape):
    """What was deleted."""

    id: str = Field(description="Of the file.", examples=[FILE_ID])
    object: Literal["file"] = Field(description="file")
    deleted: Literal[True] = Field(description="Always true: else the answer is an error.")
