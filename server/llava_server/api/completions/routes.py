"""POST /v1/completions: texts gone on with, without the model's template."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.completions.request import CompletionRequest
from llava_server.api.completions.response import TextCompletion, TextCompletionChunk
from llava_server.api.completions.serializer import CompletionSerializer
from llava_server.api.handler import Opened, open_jobs, parsed, reply
from llava_server.api.job_builder import to_completion_jobs
from llava_server.api.openapi.document import answers_with, body_of
from llava_server.api.openapi.error import Error
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import check_text, parse_request
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.lifespan import services_of
from llava_server.request_context import context_of

__all__ = ["router"]

router = APIRouter(tags=["completions"])


@router.post(
    "/v1/completions",
    summary="Go on with a text",
    response_model=None,
    responses=answers_with(
        TextCompletion,
        "The answers, or with stream true their chunks, each an event's data, until [DONE] or an error.",
        stream=(TextCompletionChunk, Error),
        headers=QUEUE,
    ),
    openapi_extra=body_of(CompletionRequest),
)
async def create_completion(request: Request) -> Response:
    """The prompt is taken as it stands: for models of conversations /v1/chat/completions answers better."""
    asked, opened = await cancel_on_disconnect(request.receive, _open(request))
    serializer = CompletionSerializer(asked, opened.job, opened.model)
    return await reply(request, opened, serializer, is_stream=bool(asked.stream))


async def _open(request: Request) -> tuple[CompletionRequest, Opened]:
    services = services_of(request)
    with context_of(request).body.consume() as raw:
        asked = await parsed(request, raw, _parse)
    num_bytes = sum(len(prompt.encode()) for prompt in asked.prompts if isinstance(prompt, str))
    check_text(num_bytes, services.settings.max_text_kb * 1024, param="prompt")
    model = await services.registry.find(asked.model)
    jobs = to_completion_jobs(
        asked, model, tenant=context_of(request).tenant, ttl_s=services.settings.request_timeout_s
    )
    return asked, await open_jobs(request, model, jobs, {}, field="prompt")


def _parse(raw: bytes) -> CompletionRequest:
    return parse_request(CompletionRequest, raw)
