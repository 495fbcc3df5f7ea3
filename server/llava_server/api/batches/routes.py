"""/v1/batches: requests that are uploaded in a file and run at the lowest priority."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query
from llava_wire.errors import QueueUnavailable, StoreFull
from llava_wire.stores.batches import Batch, BatchSpec
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.batches import response
from llava_server.api.batches.jsonl import check_input
from llava_server.api.batches.request import BatchRequest
from llava_server.api.batches.response import BATCH_ID, BatchCounts, BatchErrorLine, BatchErrors, BatchList
from llava_server.api.chat.request_handler import RequestHandler
from llava_server.api.files.routes import stored_file
from llava_server.api.openapi.document import Operation
from llava_server.api.parse import parse_request
from llava_server.errors import ApiError, from_store_error
from llava_server.lifespan import services_of
from llava_server.request_context import context_of
from llava_server.response_model import JSONResponse
from llava_server.tracing import traceparent

__all__ = ["router"]

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_MIB = 2**20
_WINDOW_S = 86400.0
_MAX_PAGE = 100
BatchId = Annotated[str, Path(description="ID of the batch.", max_length=128, examples=[BATCH_ID])]


@router.post("", summary="Create a batch")
@Operation("The batch", response.Batch, request=BatchRequest)
async def create_batch(request: Request) -> Response:
    """The input file is validated immediately. If it is invalid, the batch fails, and ``errors`` lists the
    problems.
    """
    services, tenant = services_of(request), context_of(request).tenant
    handler = RequestHandler(request)
    with handler.body() as raw:
        batch_request = await handler.parse(raw, partial(parse_request, BatchRequest))
    file = await stored_file(request, batch_request.input_file_id)
    await handler.loaded.reserve(file.size)
    try:
        data = await services.files.read(file, tenant=tenant)
        if data is None or not await services.files.renew(file.file_id, tenant=tenant):
            raise ApiError(
                "file_not_found",
                "The input file no longer exists. Upload it again.",
                param="input_file_id",
            )
        check = partial(
            check_input,
            data,
            endpoint=batch_request.endpoint,
            max_lines=services.settings.max_batch_lines,
            max_line_bytes=services.settings.max_body_mb * _MIB,
        )
        num_lines, issues = await services.threads.run(tenant, check)
        spec = BatchSpec(
            batch_id=f"batch_{secrets.token_hex(16)}",
            tenant=tenant,
            input_file_id=batch_request.input_file_id,
            endpoint=batch_request.endpoint,
            completion_window=batch_request.completion_window,
            created_at=int(time.time()),
            metadata=batch_request.metadata,
            issues=issues,
            trace=traceparent(),
        )
        await services.batches.create(spec, num_lines=num_lines, window_s=_WINDOW_S)
    except (StoreFull, QueueUnavailable) as error:
        raise from_store_error(error) from error
    if issues:
        services.metrics.batch_ended("failed")
    services.batches_changed.set()
    return await _current(request, spec.batch_id)


@router.get("", summary="List batches")
@Operation("The batches", BatchList, statuses=(400, 401, 500, 503))
async def list_batches(
    request: Request,
    after: Annotated[
        str,
        Query(description="ID of the last batch on the previous page.", max_length=128, examples=[BATCH_ID]),
    ] = "",
    limit: Annotated[
        int, Query(ge=1, le=_MAX_PAGE, description="Maximum number of batches per page.", examples=[20])
    ] = 20,
) -> Response:
    """Returns the batches that were created with this API key, newest first."""
    try:
        batches = await services_of(request).batches.list_batches(
            tenant=context_of(request).tenant, after=after, limit=limit + 1
        )
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    data = [_to_response(batch) for batch in batches[:limit]]
    body = BatchList(data=data, has_more=len(batches) > limit)
    if data:
        body.first_id, body.last_id = data[0].id, data[-1].id
    return JSONResponse(body)


@router.get("/{batch_id}", summary="Retrieve a batch")
@Operation("The batch", response.Batch, statuses=(400, 401, 404, 500, 503))
async def get_batch(request: Request, batch_id: BatchId) -> Response:
    """``request_counts`` shows the progress. The result files are available once the batch has ended."""
    return await _current(request, batch_id)


@router.post("/{batch_id}/cancel", summary="Cancel a batch")
@Operation("The batch", response.Batch, statuses=(400, 401, 404, 408, 409, 413, 429, 500, 503))
async def cancel_batch(request: Request, batch_id: BatchId) -> Response:
    """The output file will contain the results of completed requests. The request body is ignored."""
    batch = await _found(services_of(request).batches.cancel(batch_id, tenant=context_of(request).tenant))
    if batch.state not in ("cancelling", "cancelled"):
        raise ApiError("batch_has_ended", f"The batch is {batch.state} and can no longer be cancelled.")
    services_of(request).batches_changed.set()
    return JSONResponse(_to_response(batch))


async def _current(request: Request, batch_id: str) -> Response:
    found = services_of(request).batches.find(batch_id, tenant=context_of(request).tenant)
    return JSONResponse(_to_response(await _found(found)))


async def _found(lookup: Awaitable[Batch | None]) -> Batch:
    """Return the result of ``lookup``.

    Raises ApiError if the batch does not exist (404) or the queue is unavailable (503).
    """
    try:
        batch = await lookup
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    if batch is None:
        raise ApiError(
            "batch_not_found", "The batch does not exist, belongs to a different API key, or has expired."
        )
    return batch


def _to_response(batch: Batch) -> response.Batch:
    spec = batch.spec
    issues = [BatchErrorLine(issue.code, issue.line, issue.message, issue.param) for issue in spec.issues]
    return response.Batch(
        id=spec.batch_id,
        endpoint=spec.endpoint,
        errors=BatchErrors(data=issues) if issues else None,
        input_file_id=spec.input_file_id,
        status=batch.state,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=spec.created_at,
        expires_at=batch.expires_at,
        in_progress_at=batch.timestamps.get("in_progress"),
        completed_at=batch.timestamps.get("completed"),
        failed_at=batch.timestamps.get("failed"),
        expired_at=batch.timestamps.get("expired"),
        cancelling_at=batch.timestamps.get("cancelling"),
        cancelled_at=batch.timestamps.get("cancelled"),
        request_counts=BatchCounts(batch.num_lines, batch.num_completed, batch.num_failed),
        metadata=spec.metadata,
    )
