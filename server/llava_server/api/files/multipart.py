"""Parser for multipart/form-data file uploads whose request body is already in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from llava_server.errors import ApiError

__all__ = ["FileUpload", "Upload", "parse_upload"]

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 1024
_MAX_NAME = 255
_PIECE_BYTES = 1 << 18  # takes a few milliseconds to parse


class FileUpload(BaseModel):
    """A file for a batch, or an image."""

    file: bytes = Field(
        description="An image, or a JSONL file with one request per line. See docs/guides/batches.md.",
        examples=["requests.jsonl"],
    )
    purpose: Literal["batch", "vision", "user_data", "assistants"] = Field(
        description='Purpose of the file: "batch" for the input of a batch. "vision", "user_data" and '
        '"assistants" are equivalent and intended for images.'
    )
    expires_after_anchor: Literal["created_at"] | None = Field(
        None, alias="expires_after[anchor]", description="Start of the time given by expires_after[seconds]."
    )
    expires_after_seconds: int | None = Field(
        None,
        alias="expires_after[seconds]",
        ge=3600,
        le=2_592_000,
        description="Time until the file expires, in seconds. The file expires earlier if the server's limit "
        "(LLAVA_FILE_DAYS) is shorter.",
        examples=[3600],
    )


@dataclass(frozen=True)
class Upload:
    """The file and the other fields of an uploaded form."""

    name: str
    data: bytes
    fields: dict[str, str]


async def parse_upload(headers: Headers, body: bytes) -> Upload:
    """Parse a form that contains a file. Raises ApiError (400, 415)."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(
            "unsupported_media_type",
            "The request must be multipart/form-data. Send the file in the field 'file'.",
        )
    parser = MultiPartParser(
        headers, _pieces(body), max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    )
    parser.spool_max_size = len(body) + 1  # keep the file in memory: the disk may be read-only
    try:
        form = await parser.parse()
    except MultipartParseError as error:  # starlette before 1.7 does not convert it
        raise ApiError("invalid_value", f"The form could not be parsed: {str(error)[:200]}.") from error
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        text = getattr(error, "message", "the boundary is missing or a field name is not valid text")
        reason = text[:200].rstrip(".")
        raise ApiError("invalid_value", f"The form could not be parsed: {reason}.") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(
                "missing_required_parameter",
                "The form contains no file. Send the file in the field 'file'.",
                param="file",
            )
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        return Upload((file.filename or "file")[:_MAX_NAME], await file.read(), fields)
    finally:
        await form.close()


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield the body in pieces. Between them, the event loop serves other requests."""
    for begin in range(0, len(body), _PIECE_BYTES):
        await asyncio.sleep(0)
        yield body[begin : begin + _PIECE_BYTES]
