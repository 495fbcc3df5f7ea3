"""POST /v1/completions: continue texts, without the model's chat template."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from llava_wire.messages.job import Job
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.completions.request import CompletionRequest
from llava_server.api.completions.response import TextCompletion, TextCompletionChunk
from llava_server.api.completions.serializer import CompletionSerializer
from llava_server.api.handler import Generation, JobSet, RequestHandler
from llava_server.api.job_builder import raw_job, with_choices
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import check_text, parse_request
from llava_server.error_response import Error
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.worker_registry import ServedModel

__all__ = ["router"]

router = APIRouter(tags=["completions"])

_ECHO_VERSION = 2  # of the wire; a worker of an older version would leave the prompt out


@router.post("/v1/completions", summary="Go on with a text")
@Operation(
    "The answers, or with stream true their chunks, each an event's data, until [DONE] or an error.",
    TextCompletion,
    stream=TextCompletionChunk | Error,
    headers=QUEUE,
    request=CompletionRequest,
)
async def create_completion(request: Request) -> Response:
    """The prompt is taken as it stands: for models of conversations /v1/chat/completions answers better."""
    handler = RequestHandler(request)
    completion, generation = await cancel_on_disconnect(request.receive, _start(handler))
    serializer = CompletionSerializer(completion, generation.job, generation.model)
    return await handler.respond(generation, serializer, is_stream=bool(completion.stream))


async def _start(handler: RequestHandler) -> tuple[CompletionRequest, Generation]:
    settings = handler.services.settings
    with handler.body() as raw:
        request = await handler.parse(raw, lambda body: parse_request(CompletionRequest, body))
    num_bytes = sum(len(prompt.encode()) for prompt in request.prompts if isinstance(prompt, str))
    check_text(num_bytes, settings.max_text_kb * 1024, param="prompt")
    model = await handler.services.registry.find(request.model)
    jobs = _to_jobs(request, model, tenant=handler.tenant, ttl_s=settings.request_timeout_s)
    return request, await handler.submit(JobSet(model, jobs, {}), field="prompt")


def _to_jobs(request: CompletionRequest, model: ServedModel, *, tenant: str, ttl_s: float) -> list[Job]:
    """Return the jobs of all choices of the first prompt, then those of the second, and so on."""
    sampling = request.to_sampling_params(
        max_tokens=min(request.max_output_tokens, model.context_length),
        stop=request.stop_strings,
        ignore_eos=bool(request.ignore_eos),
        num_logprobs=request.num_logprobs,
        grammar=request.grammar,
    )
    jobs: list[Job] = []
    for prompt in request.prompts:
        job = raw_job(prompt, model, tenant=tenant, ttl_s=ttl_s, sampling=sampling)
        job = msgspec.structs.replace(
            job, priority=request.job_priority, cache_scope=request.cache_scope or "tenant"
        )
        if request.echo:
            job = msgspec.structs.replace(job, is_echoed=True, version=_ECHO_VERSION)
        jobs += with_choices(job, request.num_choices)
    return jobs
