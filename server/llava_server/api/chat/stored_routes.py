"""Stored chat completions: list them, change their metadata and read their messages."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request_handler import RequestHandler
from llava_server.api.chat.response import ChatCompletion
from llava_server.api.chat.routes import JobId
from llava_server.api.chat.stored_chat import completion_text, find_chat, list_chats
from llava_server.api.chat.stored_messages import (
    ChatList,
    ChatUpdate,
    StoredMessageList,
    to_stored_message,
)
from llava_server.api.openapi.document import Operation
from llava_server.api.parse import parse_request
from llava_server.api.storage.paging import After, Limit, Order, page_of
from llava_server.api.storage.stored import store_errors
from llava_server.errors import response_not_found
from llava_server.response_model import EncodedResponse

__all__ = ["router"]

router = APIRouter(tags=["chat"])

_METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
Ascending = Annotated[Order, Query(description='"asc" lists the oldest item first.', examples=["asc"])]


@router.get("/v1/chat/completions", summary="List stored chat completions")
@Operation("The completions", ChatList, statuses=(400, 401, 500, 503))
async def list_completions(
    request: Request,
    after: After = "",
    limit: Limit = 20,
    order: Ascending = "asc",
    model: Annotated[
        str | None,
        Query(description="List only completions of this model.", max_length=256, examples=["tiny-llava"]),
    ] = None,
) -> Response:
    """Returns completions that were requested with ``store`` and have ended. To list only completions with
    certain metadata, add parameters of the form ``metadata[key]=value``.
    """
    handler = RequestHandler(request)
    page, has_more = await list_chats(
        handler.services,
        handler.loaded,
        tenant=handler.tenant,
        after=after,
        limit=limit,
        order=order,
        model=model,
        metadata=_metadata(request.query_params),
    )
    body = ChatList(data=[], has_more=has_more)
    if page:
        body.first_id, body.last_id = page[0].response_id, page[-1].response_id
    texts = b",".join(completion_text(stored) for stored in page)
    head = msgspec.json.encode(body)
    return EncodedResponse(head.replace(b'"data":[]', b'"data":[' + texts + b"]", 1))


@router.post("/v1/chat/completions/{job_id}", summary="Change the metadata of a stored chat completion")
@Operation(
    "The completion",
    ChatCompletion,
    request=ChatUpdate,
    statuses=(400, 401, 404, 408, 413, 415, 429, 500, 503),
)
async def update_completion(request: Request, job_id: JobId) -> Response:
    """Replaces the metadata."""
    handler = RequestHandler(request)
    with handler.body() as raw:
        update = await handler.parse(raw, partial(parse_request, ChatUpdate))
    stored = await find_chat(handler.services, job_id, handler.loaded, tenant=handler.tenant)
    head = msgspec.structs.replace(stored.head, metadata=update.metadata or {})
    with store_errors():
        is_updated = await handler.services.responses.update(job_id, head, tenant=handler.tenant)
    if not is_updated:
        raise response_not_found()
    return EncodedResponse(completion_text(msgspec.structs.replace(stored, head=head)))


@router.get("/v1/chat/completions/{job_id}/messages", summary="List the messages of a stored chat completion")
@Operation("The messages", StoredMessageList, statuses=(400, 401, 404, 500, 503))
async def list_messages(
    request: Request,
    job_id: JobId,
    after: After = "",
    limit: Limit = 20,
    order: Ascending = "asc",
) -> Response:
    """Returns the messages of the request. The generated message is part of the completion."""
    handler = RequestHandler(request)
    stored = await find_chat(handler.services, job_id, handler.loaded, tenant=handler.tenant)
    build = partial(_message_list, job_id, stored.input, after=after, limit=limit, order=order)
    return await handler.encoded(len(stored.input), build)


def _message_list(job_id: str, texts: bytes, *, after: str, limit: int, order: Order) -> StoredMessageList:
    messages = [
        to_stored_message(job_id, index, message) for index, message in enumerate(msgspec.json.decode(texts))
    ]
    data, has_more = page_of(messages, lambda message: message.id, after=after, limit=limit, order=order)
    body = StoredMessageList(data=data, has_more=has_more)
    if data:
        body.first_id, body.last_id = data[0].id, data[-1].id
    return body


def _metadata(query: QueryParams) -> dict[str, str]:
    return {match[1]: value for name, value in query.items() if (match := _METADATA.fullmatch(name))}
