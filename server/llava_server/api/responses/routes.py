"""/v1/responses: OpenAI's Responses API. Requests are converted to chat requests.

A stored response can be retrieved from any controller with the API key that requested it, both while it is
being generated and for five minutes afterwards. A background response is generated even if no client reads
it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query
from llava_wire.controller_side.query_results import JobSnapshot
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request_handler import Generation, JobSet, RequestHandler
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import MAX_START
from llava_server.api.responses import response
from llava_server.api.responses.events import ResponseEvent
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.responses.response import DeletedResponse
from llava_server.api.responses.serializer import ResponsesSerializer, with_note
from llava_server.api.responses.to_chat import parse_response_request
from llava_server.errors import response_not_found
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.response_model import JSONResponse

__all__ = ["router"]

router = APIRouter(tags=["responses"])

ResponseId = Annotated[
    str,
    Path(
        description="ID of the response.",
        max_length=128,
        examples=["resp_3f1c09a2b44de8715a7c61f02b9d10ee"],
    ),
]


@router.post(
    "/v1/responses",
    summary="Create a response",
)
@Operation(
    "The response, or a stream of events if stream is true. The last event contains the complete response.",
    response.Response,
    stream=ResponseEvent,
    stream_name="ResponseEvent",
    headers=QUEUE,
    request=ResponseRequest,
    request_headers=("Idempotency-Key",),
)
async def create_response(request: Request) -> Response:
    """Conversations are not stored. Send the whole conversation as input, including earlier output items."""
    handler = RequestHandler(request)
    is_stream, serializer, generation = await cancel_on_disconnect(request.receive, _start(handler))
    if generation is None:
        return JSONResponse(serializer.snapshot("queued", []))
    return await handler.respond(generation, serializer, is_stream=is_stream)


async def _start(handler: RequestHandler) -> tuple[bool, ResponsesSerializer, Generation | None]:
    """Return whether to stream, the serializer, and the generation (None if queued in the background)."""
    with handler.body() as raw:
        request, chat = await handler.parse(raw, parse_response_request)
        job_set = await handler.build_jobs(chat, field="input")
    [job] = job_set.jobs
    job = with_note(job, request)
    serializer = ResponsesSerializer(job)
    if request.store is False:
        job = msgspec.structs.replace(job, note="")
    job_set = JobSet(job_set.model, [job], job_set.pixels)
    if request.background and not request.stream:
        await handler.submit_background(job_set)
        return False, serializer, None
    is_resumable = handler.idempotency_key is not None
    generation = await handler.submit(job_set, is_resumable=is_resumable, field="input")
    return bool(request.stream), serializer, generation


@router.get("/v1/responses/{response_id}", summary="Retrieve or resume a response")
@Operation(
    "The response, or a stream of its events",
    response.Response,
    stream=ResponseEvent,
    stream_name="ResponseEvent",
    statuses=(400, 401, 404, 409, 503),
)
async def read_response(
    request: Request,
    response_id: ResponseId,
    stream: Annotated[
        str,
        Query(
            description='Whether to stream all events from the start ("true") or return the response in its '
            'current state ("false").',
            examples=["true"],
        ),
    ] = "false",
    starting_after: Annotated[
        int | None,
        Query(
            ge=0,
            le=MAX_START,
            description="The sequence_number of the last event that the client received. Only used if "
            'stream is "true".',
            examples=[4],
        ),
    ] = None,
) -> Response:
    """Returns the response generated so far. Only one client can stream it at a time: a new stream
    ends the previous one.
    """
    handler = RequestHandler(request)
    is_stream = stream == "true"
    job = await _snapshot(handler, response_id, has_events=not is_stream)
    if not is_stream:
        return _partial(job)
    serializer = ResponsesSerializer(
        job.outline,
        created_at=job.created_at,
        starting_after=-1 if starting_after is None else starting_after,
    )
    return await handler.resume(job.outline, serializer, is_stream=True, field="input")


@router.post("/v1/responses/{response_id}/cancel", summary="Cancel a response")
@Operation("The response", response.Response, statuses=(400, 401, 404, 503))
async def cancel_response(request: Request, response_id: ResponseId) -> Response:
    """Returns the cancelled response. A response that has already ended remains unchanged."""
    handler = RequestHandler(request)
    job_id = (await _snapshot(handler, response_id, has_events=False)).outline.job_id
    await handler.services.controller.cancel(job_id, handler.tenant)
    return _partial(await _snapshot(handler, response_id))


@router.delete("/v1/responses/{response_id}", summary="Delete a response")
@Operation("The deleted response", DeletedResponse, statuses=(400, 401, 404, 503))
async def delete_response(request: Request, response_id: ResponseId) -> Response:
    """Deletes the response permanently. A response in progress is cancelled first."""
    handler = RequestHandler(request)
    await handler.delete((await _snapshot(handler, response_id, has_events=False)).outline.job_id)
    return JSONResponse(DeletedResponse(response_id))


async def _snapshot(handler: RequestHandler, response_id: str, *, has_events: bool = True) -> JobSnapshot:
    """Return the job of a stored response. Raises ApiError (404)."""
    number = response_id.removeprefix("resp_")
    if number == response_id:
        raise response_not_found()
    job = await handler.snapshot(f"chatcmpl-{number}", has_events=has_events)
    if not job.outline.note:  # a chat completion, or a response with ``store`` set to false
        raise response_not_found()
    return job


def _partial(job: JobSnapshot) -> Response:
    serializer = ResponsesSerializer(job.outline, created_at=job.created_at)
    return JSONResponse(serializer.snapshot(job.state, job.events))
