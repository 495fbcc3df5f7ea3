"""A file sent as multipart/form-data, from a body that the door has read already."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from llava_server.errors import ApiError

__all__ = ["FileUpload", "Upload", "parse_upload"]

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 1024
_MAX_NAME = 255


class FileUpload(BaseModel):
    """A file for a batch."""

    file: bytes = Field(
        description="JSONL: one request a line, see docs/batches.md.", examples=["requests.jsonl"]
    )
    purpose: Literal["batch"] = Field(description="What it is for.")


@dataclass(frozen=True)
class Upload:
    """The file of a form, and its other fields."""

    name: str
    data: bytes
    fields: dict[str, str]


async def parse_upload(headers: Headers, body: bytes) -> Upload:
    """Raises ApiError (400, 415)."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError("unsupported_media_type", "send the file as multipart/form-data, in the field 'file'")
    parser = MultiPartParser(
        headers, _once(body), max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    )
    parser.spool_max_size = len(body) + 1  # in memory: there may be no disk to write to
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        text = getattr(error, "message", "it has no boundary, or names that are no text")
        raise ApiError("invalid_value", f"the form cannot be read: {text[:200]}") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError("missing_required_parameter", "the form needs a file named 'file'", param="file")
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        return Upload((file.filename or "file")[:_MAX_NAME], await file.read(), fields)
    finally:
        await form.close()


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
