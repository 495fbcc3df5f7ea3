"""/v1/responses: OpenAI's newer way to ask; the same answers as in a chat, in its words.

A response that is stored can be read while it is made and for five minutes after, by the key that asked for
it, on any controller. One in the background is made although nobody reads it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query
from llava_wire.controller_side.queue_status import JobSnapshot
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.api.handler import Opened, chat_jobs, open_jobs, parsed, reply
from llava_server.api.openapi.deleted import DeletedResponse
from llava_server.api.openapi.document import answers_with, body_of
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import MAX_START, idempotency_key
from llava_server.api.responses.events import ResponseEvent
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.responses.response import Response as ResponseShape
from llava_server.api.responses.serializer import ResponsesSerializer, with_note
from llava_server.api.responses.to_chat import parse_response_request
from llava_server.errors import answer_not_found
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.generation.sse_response import EventStream, stream_timeouts
from llava_server.lifespan import services_of
from llava_server.request_context import context_of
from llava_server.request_metrics import NoMetrics

__all__ = ["router"]

router = APIRouter(tags=["responses"])

ResponseId = Annotated[
    str,
    Path(
        description="The id of the response.",
        max_length=128,
        examples=["resp_3f1c09a2b44de8715a7c61f02b9d10ee"],
    ),
]


@router.post(
    "/v1/responses",
    summary="Answer a conversation with pictures, in the words of the Responses API",
    response_model=None,
    responses=answers_with(
        ResponseShape,
        "The response, or with stream true its events, named by their type, until the one that has it whole.",
        stream=(ResponseEvent,),
        headers=QUEUE,
    ),
    openapi_extra=body_of(ResponseRequest, headers=("Idempotency-Key",)),
)
async def create_response(request: Request) -> Response:
    """No conversation is stored: send all of it as input, items of earlier outputs included."""
    asked, serializer, opened = await cancel_on_disconnect(request.receive, _open(request))
    if opened is None:
        return JSONResponse(serializer.so_far("queued", []))
    return await reply(request, opened, serializer, is_stream=bool(asked.stream))


async def _open(request: Request) -> tuple[ResponseRequest, ResponsesSerializer, Opened | None]:
    """None: it is in the queue, and nobody waits for it."""
    with context_of(request).body.consume() as raw:
        asked, chat = await parsed(request, raw, parse_response_request)
        model, [job], pixels = await chat_jobs(request, chat)
    job = with_note(job, asked)
    serializer = ResponsesSerializer(job)
    if asked.store is False:
        job = msgspec.structs.replace(job, note="")
    if asked.background and not asked.stream:
        context_of(request).job_id = job.job_id
        outputs = MergedOutputs(services_of(request).controller)
        await outputs.submit([job], pixels)
        await outputs.aclose()
        return asked, serializer, None
    is_kept = idempotency_key(request.headers) is not None
    return asked, serializer, await open_jobs(request, model, [job], pixels, is_kept=is_kept, field="input")


@router.get(
    "/v1/responses/{response_id}",
    summary="Read a response while it is made, or later",
    response_model=None,
    responses=answers_with(
        ResponseShape,
        "The response, or its events",
        stream=(ResponseEvent,),
        statuses=(400, 401, 404, 409, 503),
    ),
)
async def read_response(
    request: Request,
    response_id: ResponseId,
    stream: Annotated[
        str, Query(description="true: its events, from the first one on.", examples=["true"])
    ] = "false",
    starting_after: Annotated[
        int | None,
        Query(
            ge=0,
            le=MAX_START,
            description="With stream true: the sequence_number of the last event known.",
            examples=[4],
        ),
    ] = None,
) -> Response:
    """As far as it is made. With stream true its events come to this reader and to no other any more."""
    glimpse = await _glimpse(request, response_id, has_events=stream != "true")
    start = -1 if starting_after is None else starting_after
    serializer = ResponsesSerializer(glimpse.outline, created_at=glimpse.created_at, starting_after=start)
    if stream != "true":
        return JSONResponse(serializer.so_far(glimpse.state, glimpse.events))
    settings = services_of(request).settings
    outputs = MergedOutputs(services_of(request).controller, field="input")
    await outputs.resume(glimpse.outline, timeout_s=settings.request_timeout_s)
    return EventStream(outputs, None, serializer, [NoMetrics()], stream_timeouts(settings))


@router.post(
    "/v1/responses/{response_id}/cancel",
    summary="Cancel a response",
    response_model=None,
    responses=answers_with(ResponseShape, "The response", statuses=(400, 401, 404, 503)),
)
async def cancel_response(request: Request, response_id: ResponseId) -> Response:
    """Gives the response as it is then; one that is over already stays as it is."""
    job_id = (await _glimpse(request, response_id, has_events=False)).outline.job_id
    await services_of(request).controller.cancel(job_id, context_of(request).tenant)
    glimpse = await _glimpse(request, response_id)
    serializer = ResponsesSerializer(glimpse.outline, created_at=glimpse.created_at)
    return JSONResponse(serializer.so_far(glimpse.state, glimpse.events))


@router.delete(
    "/v1/responses/{response_id}",
    summary="Delete a response",
    response_model=None,
    responses=answers_with(DeletedResponse, "What was deleted", statuses=(400, 401, 404, 503)),
)
async def delete_response(request: Request, response_id: ResponseId) -> Response:
    """It cannot be read any more, by nobody. One that is not over is cancelled first."""
    job_id = (await _glimpse(request, response_id, has_events=False)).outline.job_id
    if not await services_of(request).controller.delete(job_id, context_of(request).tenant):
        raise answer_not_found()
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def _glimpse(request: Request, response_id: str, *, has_events: bool = True) -> JobSnapshot:
    """Raises ApiError: 404 for what is none of this key's stored responses."""
    number = response_id.removeprefix("resp_")
    context_of(request).job_id = job_id = f"chatcmpl-{number}"
    if number != response_id:
        controller = services_of(request).controller
        glimpse = await controller.snapshot(job_id, context_of(request).tenant, has_events=has_events)
        if glimpse.outline.note:
            return glimpse
    raise answer_not_found()
