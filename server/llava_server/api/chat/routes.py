"""POST /v1/chat/completions: OpenAI's chat, the form that all other routes' requests come to."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.response import ChatCompletion
from llava_server.api.chat.response_chunk import ChatCompletionChunk
from llava_server.api.chat.serializer import ChatSerializer
from llava_server.api.handler import open_chat, reply
from llava_server.api.openapi.document import answers_with, body_of
from llava_server.api.openapi.error import Error
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import parse_request
from llava_server.generation.disconnect import cancel_on_disconnect

__all__ = ["router"]

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation with pictures",
    response_model=None,
    responses=answers_with(
        ChatCompletion,
        "The answer, or with stream true its chunks, each the data of an event, until [DONE] or an error.",
        stream=(ChatCompletionChunk, Error),
        headers=QUEUE,
    ),
    openapi_extra=body_of(ChatRequest, headers=("Idempotency-Key",)),
)
async def create_chat_completion(request: Request) -> Response:
    """The status line waits for the first event, so an error is a proper 4xx or 5xx in streaming mode too."""
    chat, opened = await cancel_on_disconnect(request.receive, open_chat(request, _parse))
    serializer = ChatSerializer(
        opened.job,
        opened.model.fingerprint,
        include_usage=chat.tells_usage,
        always_usage=chat.tells_usage_always,
    )
    return await reply(request, opened, serializer, is_stream=bool(chat.stream))


def _parse(raw: bytes) -> tuple[ChatRequest, ChatRequest]:
    chat = parse_request(ChatRequest, raw)
    return chat, chat
