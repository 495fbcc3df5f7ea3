"""Anthropic's Messages API. Requests are converted to chat requests."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.anthropic.events import MessageEvent
from llava_server.api.anthropic.request import CountTokensRequest, MessagesRequest
from llava_server.api.anthropic.response import Message, MessageTokens
from llava_server.api.anthropic.serializer import MessagesSerializer
from llava_server.api.anthropic.to_chat import parse_count_request, parse_messages_request
from llava_server.api.chat.request_handler import RequestHandler
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.tokenize.routes import count_chat_tokens
from llava_server.error_response import MessageError
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.response_model import JSONResponse

__all__ = ["router"]

router = APIRouter(tags=["messages"])


@router.post(
    "/v1/messages",
    summary="Create a message (Anthropic Messages API)",
)
@Operation(
    "The message, or a stream of events if stream is true. A stream ends with message_stop or an error "
    "event.",
    Message,
    stream=MessageEvent,
    stream_name="MessageEvent",
    error=MessageError,
    headers=QUEUE,
    request=MessagesRequest,
    request_headers=("Idempotency-Key",),
)
async def create_message(request: Request) -> Response:
    """If the last message is from the assistant, the model continues it."""
    handler = RequestHandler(request)
    message, generation = await handler.start(parse_messages_request)
    return await handler.respond(
        generation, MessagesSerializer(generation.job), is_stream=bool(message.stream)
    )


@router.post(
    "/v1/messages/count_tokens",
    summary="Count the tokens of a prompt",
)
@Operation("The token count", MessageTokens, error=MessageError, request=CountTokensRequest)
async def count_tokens(request: Request) -> Response:
    """The count includes image tokens."""
    return await cancel_on_disconnect(request.receive, _count_tokens(RequestHandler(request)))


async def _count_tokens(handler: RequestHandler) -> Response:
    with handler.body() as raw:
        _, chat = await handler.parse(raw, parse_count_request)
        return JSONResponse(MessageTokens(await count_chat_tokens(handler, chat)))
