"""/v1/chat/completions: OpenAI's chat API. Requests to most other routes are converted to chat requests.

A completion can be retrieved with the API key that requested it, both while it is being generated and for
five minutes afterwards, or for days if it is stored (see ``stored_routes``).
If the request had an ``Idempotency-Key``, generation continues after the client disconnects.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query
from llava_wire.errors import ResponseTooLarge
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.job_builder import choice_id
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.request_handler import Generation, RequestHandler, run_parser
from llava_server.api.chat.response import CHAT_ID, ChatCompletion, ChatCompletionChunk, DeletedChat
from llava_server.api.chat.serializer import ChatSerializer
from llava_server.api.chat.stored_chat import completion_text, find_chat, new_chat_record
from llava_server.api.fields.sampling import MAX_CHOICES
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import MAX_START, parse_request
from llava_server.api.storage.stored import (
    store_errors,
    store_too_large,
    stored,
    suppress_not_found,
)
from llava_server.error_response import Error
from llava_server.errors import ApiError
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.response_model import EncodedResponse, JSONResponse

__all__ = ["JobId", "router"]

router = APIRouter(tags=["chat"])

_NUM_TOKENS = re.compile(r"[0-9]{1,9}", re.ASCII)
JobId = Annotated[str, Path(description="ID of the completion.", max_length=128, examples=[CHAT_ID])]


@router.post("/v1/chat/completions", summary="Create a chat completion")
@Operation(
    "The completion, or a stream of chunks if stream is true. A stream ends with [DONE] or an error.",
    ChatCompletion,
    stream=ChatCompletionChunk | Error,
    headers=QUEUE,
    request=ChatRequest,
    request_headers=("Idempotency-Key",),
)
async def create_chat_completion(request: Request) -> Response:
    """The response starts once the first output is available. Errors that occur earlier have a 4xx or 5xx
    status.
    """
    handler = RequestHandler(request)
    chat, generation = await cancel_on_disconnect(request.receive, _start(handler))
    serializer = ChatSerializer(
        generation.job,
        generation.fingerprint,
        include_usage=chat.include_usage,
        continuous_usage=chat.continuous_usage,
    )
    return await handler.respond(generation, serializer, is_stream=bool(chat.stream))


@router.get("/v1/chat/completions/{job_id}", summary="Retrieve or resume a chat completion")
@Operation(
    "The completion, or a stream of its chunks",
    ChatCompletion,
    stream=ChatCompletionChunk | Error,
    request_headers=("Last-Event-ID",),
    statuses=(400, 401, 404, 409, 503),
)
async def read_answer(
    request: Request,
    job_id: JobId,
    stream: Annotated[
        str,
        Query(
            description='Whether to stream server-sent events ("true") or return the complete response '
            '("false").',
            examples=["true"],
        ),
    ] = "false",
    starting_after: Annotated[
        int | None,
        Query(
            ge=0,
            le=MAX_START,
            description="Number of tokens to skip. Overrides the Last-Event-ID header.",
            examples=[12],
        ),
    ] = None,
    include_usage: Annotated[
        str,
        Query(description='If "true", the last chunk contains the token usage.', examples=["true"]),
    ] = "false",
) -> Response:
    """Returns only the first choice unless the completion is stored. Streams with ``n`` greater than 1 cannot
    be resumed.
    """
    handler = RequestHandler(request)
    if stream != "true":
        with suppress_not_found():
            found = await find_chat(handler.services, job_id, handler.loaded, tenant=handler.tenant)
            return EncodedResponse(completion_text(found))
    start = _num_received(job_id, starting_after, request.headers.get("last-event-id"))
    snapshot = await handler.snapshot(job_id, has_events=False)
    job = snapshot.outline
    serializer = ChatSerializer(
        job,
        handler.services.registry.fingerprint(job.model, snapshot.model_digest),
        include_usage=include_usage == "true",
    )
    return await handler.resume(job, serializer, is_stream=stream == "true", start=start)


@router.delete("/v1/chat/completions/{job_id}", summary="Delete a chat completion")
@Operation("The deleted completion", DeletedChat, statuses=(400, 401, 404, 503))
async def delete_answer(request: Request, job_id: JobId) -> Response:
    """Deletes the completion and all of its choices. A completion in progress is cancelled first."""
    handler = RequestHandler(request)
    with store_errors():
        is_deleted = await handler.services.responses.remove(job_id, tenant=handler.tenant)
    with suppress_not_found() if is_deleted else nullcontext():
        await handler.delete(job_id)
        controller = handler.services.controller
        for index in range(1, MAX_CHOICES):
            if not await controller.delete(choice_id(job_id, index), handler.tenant):
                break
    return JSONResponse(DeletedChat(job_id))


async def _start(handler: RequestHandler) -> tuple[ChatRequest, Generation]:
    with handler.body() as raw:
        chat = await handler.parse(raw, partial(parse_request, ChatRequest))
        job_set = await handler.build_jobs(chat)
        num_bytes = len(raw)
    is_resumable = handler.idempotency_key is not None
    if not chat.store:
        return chat, await handler.submit(job_set, is_resumable=is_resumable)
    encode = partial(new_chat_record, chat, job_set.jobs[0].job_id)
    record = await run_parser(handler.services, handler.tenant, num_bytes, encode)
    try:
        async with stored(handler.services.responses, record, tenant=handler.tenant, is_listed=True):
            return chat, await handler.submit(job_set, is_resumable=is_resumable)
    except ResponseTooLarge as error:
        raise store_too_large(error) from error


def _num_received(job_id: str, starting_after: int | None, last_event_id: str | None) -> int:
    """Return the number of tokens that the client has already received. Raises ApiError (400)."""
    if starting_after is not None or not last_event_id:
        return starting_after or 0
    event_job_id, _, number = last_event_id.rpartition(":")
    if event_job_id != job_id or not _NUM_TOKENS.fullmatch(number):
        event_id = last_event_id[:64]
        raise ApiError(
            "invalid_value",
            f"The Last-Event-ID header {event_id!a} does not refer to this completion. Send an event ID from "
            "this completion.",
        )
    return int(number)
