"""/v1/responses: OpenAI's Responses API. Requests are converted to chat requests.

A stored response can be retrieved and continued on any controller with the API key that requested it. Its
events can be streamed while it is being generated and for five minutes afterwards. A background response is
generated even if no client reads it.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query
from llava_wire.controller_side.query_results import JobSnapshot
from llava_wire.errors import ResponseTooLarge
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.request_handler import (
    Generation,
    JobSet,
    RequestHandler,
    run_parser,
)
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import MAX_START
from llava_server.api.responses import response
from llava_server.api.responses.conversation import new_record, with_stored_items
from llava_server.api.responses.events import ResponseEvent
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.responses.response import DeletedResponse
from llava_server.api.responses.serializer import ResponsesSerializer, with_note
from llava_server.api.responses.stored_output import find_response, job_id_of
from llava_server.api.responses.to_chat import parse_response_request, to_chat
from llava_server.api.storage.stored import (
    reserve_stored,
    store_errors,
    store_too_large,
    stored,
    suppress_not_found,
)
from llava_server.errors import ApiError, response_not_found
from llava_server.generation.collect import num_event_bytes
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.loaded_data import LoadedBytes
from llava_server.response_model import EncodedResponse, JSONResponse

__all__ = ["ResponseId", "read_request", "router"]

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
    """To continue a conversation, set ``previous_response_id`` or send the whole conversation as input."""
    handler = RequestHandler(request)
    with handler.services.loaded_data.hold(handler.tenant) as loaded:
        start = _start(handler, loaded)
        is_stream, serializer, generation = await cancel_on_disconnect(request.receive, start)
    if generation is None:
        return JSONResponse(serializer.snapshot("queued", []))
    return await handler.respond(generation, serializer, is_stream=is_stream)


async def read_request(
    handler: RequestHandler, raw: bytes, loaded: LoadedBytes
) -> tuple[ResponseRequest, ChatRequest]:
    """Parse a request and load the items that it refers to. The returned requests contain no references.

    The chat request contains the whole conversation. Raises ApiError.
    """
    request, chat = await handler.parse(raw, parse_response_request)
    if chat is not None:
        return request, chat
    request, whole = await with_stored_items(handler.services, request, loaded, tenant=handler.tenant)
    convert = partial(to_chat, whole, num_earlier=len(whole.items) - len(request.items))
    return request, await handler.services.threads.run(handler.tenant, convert)


async def _start(
    handler: RequestHandler, loaded: LoadedBytes
) -> tuple[bool, ResponsesSerializer, Generation | None]:
    """Return whether to stream, the serializer, and the generation (None if queued in the background)."""
    with handler.body() as raw:
        request, chat = await read_request(handler, raw, loaded)
        job_set = await handler.build_jobs(chat, field="input")
        num_bytes = len(raw) + loaded.num_bytes
    if request.store is not False:
        encode = partial(new_record, request, job_set.jobs[0].job_id)
        record = await run_parser(handler.services, handler.tenant, num_bytes, encode)
        try:
            async with stored(handler.services.responses, record, tenant=handler.tenant):
                return await _submit(handler, request, job_set)
        except ResponseTooLarge as error:
            if request.store or request.background:
                raise store_too_large(error) from error
    request = request.model_copy(update={"store": False})
    return await _submit(handler, request, job_set)


async def _submit(
    handler: RequestHandler, request: ResponseRequest, job_set: JobSet
) -> tuple[bool, ResponsesSerializer, Generation | None]:
    [job] = job_set.jobs
    job = with_note(job, request)
    serializer = ResponsesSerializer(job)
    if request.store is False:
        job = msgspec.structs.replace(job, note="")
    job_set = JobSet(job_set.model, [job], job_set.pixels)
    if request.background and not request.stream:
        await handler.submit_background(job_set, field="input")
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
    ends the previous one. Events are stored for five minutes after generation ends.
    """
    handler = RequestHandler(request)
    is_stream = stream == "true"
    job = await _snapshot(handler, response_id, has_events=not is_stream)
    if job is None:
        body = await _saved(handler, response_id)
        if is_stream:
            raise ApiError(
                "answer_not_found", "The events of this response have expired. Retrieve it without stream."
            )
        return EncodedResponse(body)
    if not is_stream:
        return await _partial(handler, job)
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
    job = await _snapshot(handler, response_id, has_events=False)
    if job is None:
        return EncodedResponse(await _saved(handler, response_id))
    await handler.services.controller.cancel(job.outline.job_id, handler.tenant)
    job = await _snapshot(handler, response_id)
    if job is None:
        raise response_not_found()
    return await _partial(handler, job)


@router.delete("/v1/responses/{response_id}", summary="Delete a response")
@Operation("The deleted response", DeletedResponse, statuses=(400, 401, 404, 503))
async def delete_response(request: Request, response_id: ResponseId) -> Response:
    """Deletes the response permanently. A response in progress is cancelled first. Responses that continue it
    can no longer be continued.
    """
    handler = RequestHandler(request)
    job = await _snapshot(handler, response_id, has_events=False)
    with store_errors():
        is_deleted = await handler.services.responses.remove(response_id, tenant=handler.tenant)
    if job is not None:
        await handler.delete(job.outline.job_id)
    elif not is_deleted:
        raise response_not_found()
    return JSONResponse(DeletedResponse(response_id))


async def _snapshot(
    handler: RequestHandler, response_id: str, *, has_events: bool = True
) -> JobSnapshot | None:
    """Return the job of a response, or None if it has expired or the response does not exist."""
    if not (job_id := job_id_of(response_id)):
        raise response_not_found()
    job = None
    with suppress_not_found():
        job = await handler.snapshot(job_id, has_events=has_events)
    if (
        job is not None and not job.outline.note
    ):  # a chat completion, or a response with ``store`` set to false
        raise response_not_found()
    return job


async def _saved(handler: RequestHandler, response_id: str) -> bytes:
    """Return a response whose job has expired, in JSON. Raises ApiError (404, 429, 503)."""
    services, tenant = handler.services, handler.tenant
    await reserve_stored(services.responses, response_id, handler.loaded, tenant=tenant)
    found = await find_response(services, response_id, tenant=tenant)
    if found is None or not found.output:
        raise response_not_found()
    return found.output


async def _partial(handler: RequestHandler, job: JobSnapshot) -> Response:
    serializer = ResponsesSerializer(job.outline, created_at=job.created_at)
    return await handler.encoded(
        num_event_bytes(job.events), partial(serializer.snapshot, job.state, job.events)
    )
