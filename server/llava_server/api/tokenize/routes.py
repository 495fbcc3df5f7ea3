"""POST /tokenize and /detokenize.

A worker handles these requests with its tokenizer, without using the engine.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from llava_wire.messages.event import Event
from llava_wire.messages.job import Job
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.job_builder import new_job_id, raw_job
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.request_handler import JobSet, RequestHandler
from llava_server.api.openapi.document import Operation
from llava_server.api.parse import check_text, convert_request, parse_request
from llava_server.api.tokenize.request import DetokenizeRequest, TokenizeRequest
from llava_server.api.tokenize.response import Detokenized, Tokenized
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.response_model import JSONResponse

__all__ = ["count_chat_tokens", "router"]

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", summary="Tokenize text or a conversation")
@Operation("The tokens", Tokenized, request=TokenizeRequest)
async def tokenize(request: Request) -> Response:
    """Each image is represented by one image token for each position that it occupies in the prompt."""
    return await cancel_on_disconnect(request.receive, _tokenize(RequestHandler(request)))


@router.post("/detokenize", summary="Convert tokens to text")
@Operation("The text", Detokenized, request=DetokenizeRequest)
async def detokenize(request: Request) -> Response:
    """Special tokens are skipped. Incomplete UTF-8 sequences are replaced with U+FFFD."""
    return await cancel_on_disconnect(request.receive, _detokenize(RequestHandler(request)))


async def count_chat_tokens(handler: RequestHandler, chat: ChatRequest) -> int:
    """Return the number of tokens in the prompt of a chat request. Raises ApiError."""
    event = await _run(handler, _without_output(await handler.build_jobs(chat)), field="messages")
    return len(event.token_ids)


async def _tokenize(handler: RequestHandler) -> Response:
    with handler.body() as raw:
        request, chat = await handler.parse(raw, _parse_tokenize)
        if chat is not None:
            job_set, field = _without_output(await handler.build_jobs(chat)), "messages"
        else:
            text = request.prompt or ""
            max_bytes = handler.services.settings.max_text_kb * 1024
            check_text(len(text.encode()), max_bytes, param="prompt")
            job_set, field = await _raw_job_set(handler, request.model, text, "tokenize"), "prompt"
    event = await _run(handler, job_set, field=field)
    body = Tokenized(len(event.token_ids), job_set.model.context_length, list(event.token_ids))
    return JSONResponse(body)


async def _detokenize(handler: RequestHandler) -> Response:
    with handler.body() as raw:
        request = await handler.parse(raw, lambda body: parse_request(DetokenizeRequest, body))
    job_set = await _raw_job_set(handler, request.model, request.tokens, "detokenize")
    event = await _run(handler, job_set, field="tokens")
    return JSONResponse(Detokenized(event.text))


def _parse_tokenize(raw: bytes) -> tuple[TokenizeRequest, ChatRequest | None]:
    request = parse_request(TokenizeRequest, raw)
    if request.messages is None:
        return request, None
    names = ("model", "messages", "tools", "tool_choice", "continue_final_message", "add_generation_prompt")
    fields: dict[str, Any] = {name: getattr(request, name) for name in names}
    return request, convert_request(ChatRequest, fields, {})


async def _raw_job_set(
    handler: RequestHandler, model_name: str, prompt: str | list[int], task: Literal["tokenize", "detokenize"]
) -> JobSet:
    services, tenant = handler.services, handler.tenant
    model = await services.registry.find(model_name)
    priority, ttl_s = services.api_keys.priority(tenant), services.settings.request_timeout_s
    job = raw_job(prompt, model, tenant=tenant, priority=priority, ttl_s=ttl_s, task=task)
    return JobSet(model, [job], {})


def _without_output(job_set: JobSet) -> JobSet:
    """Return a job set with a single job that only tokenizes the prompt of the first job."""
    job: Job = job_set.jobs[0]
    sampling = replace(job.sampling, grammar=None, max_tokens=1)
    job = replace(job, job_id=new_job_id("tok"), sampling=sampling, task="tokenize")
    return JobSet(job_set.model, [job], job_set.pixels)


async def _run(handler: RequestHandler, job_set: JobSet, *, field: str) -> Event:
    """Return the only event of a job that generates no output."""
    generation = await handler.submit(job_set, field=field)
    await generation.outputs.aclose()
    return generation.first[1]
