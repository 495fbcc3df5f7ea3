"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's way to ask; the same answers as in a chat."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.api.anthropic.events import MessageEvent
from llava_server.api.anthropic.request import CountTokensRequest, MessagesRequest
from llava_server.api.anthropic.response import Message, MessageTokens
from llava_server.api.anthropic.serializer import MessagesSerializer
from llava_server.api.anthropic.to_chat import parse_count_request, parse_messages_request
from llava_server.api.handler import open_chat, parsed, reply
from llava_server.api.openapi.document import answers_with, body_of
from llava_server.api.openapi.error import MessageError
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.tokenize.routes import count_chat_tokens
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.request_context import context_of

__all__ = ["router"]

router = APIRouter(tags=["messages"])


@router.post(
    "/v1/messages",
    summary="Answer a conversation with pictures, in the words of Anthropic's Messages API",
    response_model=None,
    responses=answers_with(
        Message,
        "The message, or with stream true its events, named by their type, until message_stop or an error.",
        stream=(MessageEvent,),
        error=MessageError,
        headers=QUEUE,
    ),
    openapi_extra=body_of(MessagesRequest, headers=("Idempotency-Key",)),
)
async def create_message(request: Request) -> Response:
    """If the last message is the assistant's, the answer goes on from there."""
    asked, opened = await cancel_on_disconnect(request.receive, open_chat(request, parse_messages_request))
    serializer = MessagesSerializer(opened.job)
    return await reply(request, opened, serializer, is_stream=bool(asked.stream))


@router.post(
    "/v1/messages/count_tokens",
    summary="Count the tokens that a message's prompt would have",
    response_model=None,
    responses=answers_with(MessageTokens, "The number of tokens", error=MessageError),
    openapi_extra=body_of(CountTokensRequest),
)
async def count_tokens(request: Request) -> Response:
    """Pictures are counted with the places that they take."""
    return JSONResponse({"input_tokens": await cancel_on_disconnect(request.receive, _count(request))})


async def _count(request: Request) -> int:
    with context_of(request).body.consume() as raw:
        _, chat = await parsed(request, raw, parse_count_request)
        return await count_chat_tokens(request, chat)
