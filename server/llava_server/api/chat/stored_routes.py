"""GET and DELETE /v1/chat/completions/{id}: read an answer on, or from its beginning; or delete it.

An answer can be read by the key that asked for it, while it is under way and for five minutes after. It
outlives its connection if it was asked for with an ``Idempotency-Key``.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.api.chat.response import ChatCompletion
from llava_server.api.chat.response_chunk import ChatCompletionChunk
from llava_server.api.chat.serializer import ChatSerializer
from llava_server.api.fields.sampling import MAX_CHOICES
from llava_server.api.job_builder import choice_id
from llava_server.api.openapi.deleted import DeletedChat
from llava_server.api.openapi.document import answers_with, with_headers
from llava_server.api.openapi.error import Error
from llava_server.api.parse import MAX_START
from llava_server.errors import ApiError, answer_not_found
from llava_server.generation.collect import collect
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.generation.sse_response import EventStream, stream_timeouts
from llava_server.lifespan import services_of
from llava_server.request_context import context_of
from llava_server.request_metrics import NoMetrics

__all__ = ["router"]

router = APIRouter(tags=["chat"])

_START = re.compile(r"[0-9]{1,9}", re.ASCII)

JobId = Annotated[
    str,
    Path(
        description="The id of the completion.",
        max_length=128,
        examples=["chatcmpl-3f1c09a2b44de8715a7c61f02b9d10ee"],
    ),
]


@router.get(
    "/v1/chat/completions/{job_id}",
    summary="Read an answer on where a connection broke",
    response_model=None,
    responses=answers_with(
        ChatCompletion,
        "The answer, or its chunks",
        stream=(ChatCompletionChunk, Error),
        statuses=(400, 401, 404, 409, 503),
    ),
    openapi_extra=with_headers("Last-Event-ID"),
)
async def read_answer(
    request: Request,
    job_id: JobId,
    stream: Annotated[
        str, Query(description="true: server-sent events; else the whole answer.", examples=["true"])
    ] = "false",
    starting_after: Annotated[
        int | None,
        Query(
            ge=0,
            le=MAX_START,
            description="Tokens that the reader has; else the header Last-Event-ID.",
            examples=[12],
        ),
    ] = None,
    include_usage: Annotated[
        str, Query(description="true: a last chunk tells the tokens.", examples=["true"])
    ] = "false",
) -> Response:
    """Only with choices of one: an answer with ``n`` above 1 is read from its own stream alone."""
    services = services_of(request)
    start = _start(job_id, starting_after, request.headers.get("last-event-id"))
    outputs = MergedOutputs(services.controller)
    context_of(request).job_id = job_id
    job = (await services.controller.snapshot(job_id, context_of(request).tenant, has_events=False)).outline
    await outputs.resume(job, timeout_s=services.settings.request_timeout_s)
    tells_usage = include_usage == "true"
    serializer = ChatSerializer(job, services.registry.fingerprint(job.model), include_usage=tells_usage)
    if stream == "true":
        pace, meters = stream_timeouts(services.settings), [NoMetrics()]
        return EventStream(outputs, None, serializer, meters, pace, start=start)
    try:
        first = await cancel_on_disconnect(request.receive, outputs.next())
        answers = await cancel_on_disconnect(request.receive, collect(outputs, first, [NoMetrics()]))
    finally:
        await outputs.aclose()
    return JSONResponse(serializer.to_response(answers))


@router.delete(
    "/v1/chat/completions/{job_id}",
    summary="Delete an answer",
    response_model=None,
    responses=answers_with(DeletedChat, "What was deleted", statuses=(400, 401, 404, 503)),
)
async def delete_answer(request: Request, job_id: JobId) -> Response:
    """With all its choices. One that is under way is cancelled first; nobody can read it any more."""
    controller, tenant = services_of(request).controller, context_of(request).tenant
    if not await controller.delete(job_id, tenant):
        raise answer_not_found()
    for index in range(1, MAX_CHOICES):
        if not await controller.delete(choice_id(job_id, index), tenant):
            break
    return JSONResponse({"id": job_id, "object": "chat.completion.deleted", "deleted": True})


def _start(job_id: str, starting_after: int | None, last_event_id: str | None) -> int:
    """Raises ApiError (400)."""
    if starting_after is not None or not last_event_id:
        return starting_after or 0
    of_job, _, number = last_event_id.rpartition(":")
    if of_job != job_id or not _START.fullmatch(number):
        raise ApiError("invalid_value", "the header Last-Event-ID belongs to another answer")
    return int(number)
