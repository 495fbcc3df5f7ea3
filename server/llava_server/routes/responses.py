"""POST /v1/responses: OpenAI's newer way to ask; the same answers as in a chat, in its words."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.asking import open_chat, reply
from llava_server.openapi import answers_with, body_of
from llava_server.responses_form import parse_response_request
from llava_server.responses_writer import ResponseWriter
from llava_server.schemas_responses import ResponseRequest
from llava_server.streaming import until_gone

__all__ = ["router"]

router = APIRouter(tags=["responses"])


@router.post(
    "/v1/responses",
    summary="Answer a conversation with pictures, in the words of the Responses API",
    response_model=None,
    responses=answers_with("response, or with stream true text/event-stream of response.* events"),
    openapi_extra=body_of(ResponseRequest),
)
async def create_response(request: Request) -> Response:
    """Nothing is stored: send the whole conversation as input, items of earlier outputs included."""
    asked, opened = await until_gone(request.receive, open_chat(request, parse_response_request))
    writer = ResponseWriter(asked, opened.job)
    return await reply(request, opened, writer, is_stream=bool(asked.stream))
