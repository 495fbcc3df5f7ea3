"""POST /v1/completions: text completions that bypass the model's chat template."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request_handler import Generation, RequestHandler
from llava_server.api.completions.job_builder import build_completion_jobs
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.completions.response import TextCompletion, TextCompletionChunk
from llava_server.api.completions.serializer import CompletionSerializer
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import parse_request
from llava_server.error_response import Error
from llava_server.generation.disconnect import cancel_on_disconnect

__all__ = ["router"]

router = APIRouter(tags=["completions"])


@router.post("/v1/completions", summary="Create a text completion")
@Operation(
    "The completion, or a stream of chunks if stream is true. A stream ends with [DONE] or an error.",
    TextCompletion,
    stream=TextCompletionChunk | Error,
    headers=QUEUE,
    request=CompletionRequest,
)
async def create_completion(request: Request) -> Response:
    """The chat template is not applied. Chat models give better results with /v1/chat/completions."""
    handler = RequestHandler(request)
    completion, generation = await cancel_on_disconnect(request.receive, _start(handler))
    serializer = CompletionSerializer(completion, generation.job, generation.fingerprint)
    return await handler.respond(generation, serializer, is_stream=bool(completion.stream))


async def _start(handler: RequestHandler) -> tuple[CompletionRequest, Generation]:
    with handler.body() as raw:
        request = await handler.parse(raw, lambda body: parse_request(CompletionRequest, body))
    job_set = await build_completion_jobs(handler.services, request, tenant=handler.tenant)
    return request, await handler.submit(job_set, field="prompt")
