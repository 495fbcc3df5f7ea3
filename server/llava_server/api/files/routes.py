"""/v1/files: images, and the input and output files of batches.

A file can be accessed only with the API key that created it. Files expire after a week.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Query
from llava_wire.errors import QueueUnavailable, StoreFull
from llava_wire.stores.files import StoredFile
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.files import response
from llava_server.api.files.download import PART_BYTES, FileDownload
from llava_server.api.files.multipart import FileUpload, parse_upload
from llava_server.api.files.response import DeletedFile, FileList
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import DOWNLOAD
from llava_server.api.storage.paging import After, Order, page_of
from llava_server.errors import ApiError, from_store_error
from llava_server.lifespan import services_of
from llava_server.request_context import context_of
from llava_server.response_model import JSONResponse

__all__ = ["router", "stored_file"]

router = APIRouter(prefix="/v1/files", tags=["files"])

_PURPOSES = ("batch", "vision", "user_data", "assistants")
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_MIN_TTL_S, _MAX_TTL_S = 3600, 2_592_000
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)

FileId = Annotated[
    str,
    Path(
        description="ID of the file.",
        max_length=128,
        examples=["file-3f1c09a2b44de8715a7c61f02b9d10ee"],
    ),
]


@router.post("", summary="Upload a file")
@Operation("The file", response.StoredFile, request=FileUpload, request_type="multipart/form-data")
async def upload_file(request: Request) -> Response:
    """Images can be used in requests with the file's ID. The size limit for request bodies applies."""
    services = services_of(request)
    with context_of(request).body.consume() as body:
        upload = await parse_upload(request.headers, body)
        purpose, ttl_s = _purpose(upload.fields), _ttl_s(upload.fields)
        file = StoredFile(
            file_id=f"file-{secrets.token_hex(16)}",
            name=upload.name,
            purpose=purpose,
            created_at=int(time.time()),
        )
        try:
            await services.files.add(file, upload.data, tenant=context_of(request).tenant, ttl_s=ttl_s)
        except (StoreFull, QueueUnavailable) as error:
            raise from_store_error(error) from error
    return JSONResponse(_to_response(await stored_file(request, file.file_id)))


@router.get("", summary="List files")
@Operation("The files", FileList, statuses=(400, 401, 500, 503))
async def list_files(
    request: Request,
    purpose: Annotated[
        str | None, Query(description="List only files with this purpose.", max_length=64, examples=["batch"])
    ] = None,
    after: After = "",
    limit: Annotated[
        int, Query(ge=1, le=10_000, description="Maximum number of files per page.", examples=[20])
    ] = 10_000,
    order: Annotated[
        Order, Query(description='"desc" lists the newest file first.', examples=["desc"])
    ] = "desc",
) -> Response:
    """Returns the files that belong to this API key."""
    try:
        files = await services_of(request).files.list_files(tenant=context_of(request).tenant)
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    found = [_to_response(file) for file in reversed(files) if purpose in (None, file.purpose)]
    data, has_more = page_of(found, lambda file: file.id, after=after, limit=limit, order=order)
    body = FileList(data=data, has_more=has_more)
    if body.data:
        body.first_id, body.last_id = body.data[0].id, body.data[-1].id
    return JSONResponse(body)


@router.get("/{file_id}", summary="Retrieve a file")
@Operation("The file", response.StoredFile, statuses=(400, 401, 404, 500, 503))
async def get_file(request: Request, file_id: FileId) -> Response:
    """Returns the file's metadata. The file is deleted at ``expires_at``."""
    return JSONResponse(_to_response(await stored_file(request, file_id)))


@router.get("/{file_id}/content", summary="Download the content of a file")
@Operation(
    "The content of the file",
    "application/octet-stream",
    statuses=(400, 401, 404, 500, 503),
    headers=DOWNLOAD,
)
async def read_file(request: Request, file_id: FileId) -> Response:
    """The response is an attachment, so browsers download it instead of displaying it."""
    file = await stored_file(request, file_id)
    files, tenant = services_of(request).files, context_of(request).tenant
    try:
        part = await files.read_part(file, 0, PART_BYTES, tenant=tenant)
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    if part is None:
        raise _not_found()
    return FileDownload(files, file, part, tenant=tenant)


@router.delete("/{file_id}", summary="Delete a file")
@Operation("The deleted file", DeletedFile, statuses=(400, 401, 404, 500, 503))
async def delete_file(request: Request, file_id: FileId) -> Response:
    """Running batches that use the file continue, but fail if another controller takes them over."""
    try:
        is_deleted = await services_of(request).files.remove(file_id, tenant=context_of(request).tenant)
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    if not is_deleted:
        raise _not_found()
    return JSONResponse(DeletedFile(file_id))


async def stored_file(request: Request, file_id: str) -> StoredFile:
    """Return a file that belongs to the API key of the request. Raises ApiError (404, 503)."""
    try:
        file = await services_of(request).files.find(file_id, tenant=context_of(request).tenant)
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    if file is None:
        raise _not_found()
    return file


def _purpose(fields: Mapping[str, str]) -> str:
    """Return the purpose of an upload. Raises ApiError (400)."""
    purposes = ", ".join(_PURPOSES)
    if "purpose" not in fields:
        raise ApiError("invalid_value", f"purpose is required. Set it to one of {purposes}.", param="purpose")
    purpose = fields["purpose"]
    if purpose in ("fine-tune", "evals"):
        raise ApiError(
            "invalid_value",
            f"The purpose {purpose!a} is not supported, because this server only runs models. Use one of "
            f"{purposes}.",
            param="purpose",
        )
    if purpose not in _PURPOSES:
        purpose = purpose[:60]
        raise ApiError(
            "invalid_value", f"purpose must be one of {purposes} (got {purpose!a}).", param="purpose"
        )
    return purpose


def _ttl_s(fields: Mapping[str, str]) -> float | None:
    """Return the time until the file expires, or None if the upload does not specify it.

    Raises ApiError (400).
    """
    anchor, seconds = fields.get(_ANCHOR), fields.get(_SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError("invalid_value", f"{_ANCHOR} must be 'created_at'.", param=_ANCHOR)
    if seconds is None or not _NUMBER.fullmatch(seconds) or not _MIN_TTL_S <= int(seconds) <= _MAX_TTL_S:
        short = (seconds or "")[:20]
        raise ApiError(
            "invalid_value",
            f"{_SECONDS} must be a number from {_MIN_TTL_S} to {_MAX_TTL_S} (got {short!a}).",
            param=_SECONDS,
        )
    return float(seconds)


def _to_response(file: StoredFile) -> response.StoredFile:
    return response.StoredFile(
        id=file.file_id,
        bytes=file.size,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.name,
        purpose=file.purpose,
    )


def _not_found() -> ApiError:
    return ApiError(
        "file_not_found", "The file does not exist, belongs to a different API key, or has expired."
    )
