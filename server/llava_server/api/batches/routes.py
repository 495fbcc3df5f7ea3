"""/v1/batches: many chats at once, answered when nobody else waits, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from llava_wire.errors import QueueUnavailable, StoreFull
from llava_wire.stores.batches import Batch, BatchSpec
from starlette.requests import Request

from llava_server.api.batches.jsonl import judged
from llava_server.api.batches.request import BatchRequest
from llava_server.api.batches.response import Batch as BatchShape
from llava_server.api.batches.response import BatchList
from llava_server.api.files.routes import stored_file
from llava_server.api.handler import parsed
from llava_server.api.openapi.document import answers_with, body_of
from llava_server.api.parse import parse_request
from llava_server.errors import ApiError, from_store_error
from llava_server.lifespan import services_of
from llava_server.request_context import context_of
from llava_server.tracing import traceparent

__all__ = ["router"]

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_MIB = 2**20
_WINDOW_S = 86400.0
_MAX_PAGE = 100
_TIMES = ("in_progress", "completed", "failed", "expired", "cancelling", "cancelled")
_ID = "batch_3f1c09a2b44de8715a7c61f02b9d10ee"
BatchId = Annotated[str, Path(description="The id of the batch.", max_length=128, examples=[_ID])]


@router.post(
    "",
    summary="Begin a batch",
    response_model=None,
    responses=answers_with(BatchShape, "The batch"),
    openapi_extra=body_of(BatchRequest),
)
async def create_batch(request: Request) -> dict[str, Any]:
    """The file is judged at once: if a line is wrong the batch has failed, and ``errors`` names the lines."""
    services, tenant = services_of(request), context_of(request).tenant
    with context_of(request).body.consume() as raw:
        asked = await parsed(request, raw, partial(parse_request, BatchRequest))
    file = await stored_file(request, asked.input_file_id)
    try:
        data = await services.files.read(file, tenant=tenant)
        if data is None or not await services.files.keep(file.file_id, tenant=tenant):
            raise ApiError("file_not_found", "the file is gone: store it again", param="input_file_id")
        judge = partial(
            judged,
            data,
            max_lines=services.settings.max_batch_lines,
            max_line_bytes=services.settings.max_body_mb * _MIB,
        )
        num_lines, issues = await asyncio.get_running_loop().run_in_executor(services.parser_threads, judge)
        order = BatchSpec(
            batch_id=f"batch_{secrets.token_hex(16)}",
            tenant=tenant,
            input_file_id=asked.input_file_id,
            endpoint=asked.endpoint,
            completion_window=asked.completion_window,
            created_at=int(time.time()),
            metadata=asked.metadata,
            issues=issues,
            trace=traceparent(),
        )
        await services.batches.create(order, num_lines=num_lines, window_s=_WINDOW_S)
    except (StoreFull, QueueUnavailable) as error:
        raise from_store_error(error) from error
    if issues:
        services.metrics.batch_ended("failed")
    services_of(request).batches_changed.set()
    return await _described_now(request, order.batch_id)


@router.get(
    "",
    summary="List the batches",
    response_model=None,
    responses=answers_with(BatchList, "The batches", statuses=(400, 401, 500, 503)),
)
async def list_batches(
    request: Request,
    after: Annotated[
        str, Query(description="The last batch of the page before.", max_length=128, examples=[_ID])
    ] = "",
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE, description="How many batches.", examples=[20])] = 20,
) -> dict[str, Any]:
    """Those of this key, the latest first."""
    try:
        batches = await services_of(request).batches.page(
            tenant=context_of(request).tenant, after=after, number=limit + 1
        )
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    data = [_described(batch) for batch in batches[:limit]]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return {"object": "list", "data": data, "has_more": len(batches) > limit, **ends}


@router.get(
    "/{batch_id}",
    summary="Describe a batch",
    response_model=None,
    responses=answers_with(BatchShape, "The batch", statuses=(400, 401, 404, 500, 503)),
)
async def get_batch(request: Request, batch_id: BatchId) -> dict[str, Any]:
    """``request_counts`` tells how far it is; the files are there when it has ended."""
    return await _described_now(request, batch_id)


@router.post(
    "/{batch_id}/cancel",
    summary="Cancel a batch",
    response_model=None,
    responses=answers_with(BatchShape, "The batch", statuses=(400, 401, 404, 408, 409, 413, 429, 500, 503)),
)
async def cancel_batch(request: Request, batch_id: BatchId) -> dict[str, Any]:
    """What has been answered by then is in the output file. A body is not needed and not read."""
    batch = await _found(services_of(request).batches.cancel(batch_id, tenant=context_of(request).tenant))
    if batch.state not in ("cancelling", "cancelled"):
        raise ApiError("batch_has_ended", f"the batch is {batch.state} and cannot be cancelled any more")
    services_of(request).batches_changed.set()
    return _described(batch)


async def _described_now(request: Request, batch_id: str) -> dict[str, Any]:
    return _described(
        await _found(services_of(request).batches.find(batch_id, tenant=context_of(request).tenant))
    )


async def _found(looking: Awaitable[Batch | None]) -> Batch:
    """Raises ApiError: 404 if there is none, 503 without the queue."""
    try:
        batch = await looking
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    if batch is None:
        raise ApiError("batch_not_found", "there is no such batch of this key, or its time is over")
    return batch


def _described(batch: Batch) -> dict[str, Any]:
    order = batch.order
    issues = [
        {"code": each.code, "line": each.line, "message": each.message, "param": each.param}
        for each in order.issues
    ]
    counts = {"total": batch.num_lines, "completed": batch.num_completed, "failed": batch.num_failed}
    return {
        "id": order.batch_id,
        "object": "batch",
        "endpoint": order.endpoint,
        "errors": {"object": "list", "data": issues} if issues else None,
        "input_file_id": order.input_file_id,
        "completion_window": order.completion_window,
        "status": batch.state,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": order.created_at,
        "expires_at": batch.expires_at,
        **{f"{state}_at": batch.times.get(state) for state in _TIMES},
        "request_counts": counts,
        "metadata": order.metadata,
    }
