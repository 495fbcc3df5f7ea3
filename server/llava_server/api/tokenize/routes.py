"""POST /tokenize and /detokenize: answered by a worker, who has the tokenizer; no engine is asked."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from llava_wire.messages.event import Event
from llava_wire.messages.job import Job
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.api.chat.request import ChatRequest
from llava_server.api.handler import chat_jobs, open_jobs, parsed
from llava_server.api.job_builder import new_job_id, raw_job
from llava_server.api.openapi.document import answers_with, body_of
from llava_server.api.parse import as_chat, check_text, parse_request
from llava_server.api.tokenize.request import DetokenizeRequest, TokenizeRequest
from llava_server.api.tokenize.response import Detokenized, Tokenized
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.lifespan import services_of
from llava_server.request_context import context_of
from llava_server.worker_registry import ServedModel

__all__ = ["count_chat_tokens", "router"]

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    summary="The tokens of a text or a conversation",
    response_model=None,
    responses=answers_with(Tokenized, "The tokens"),
    openapi_extra=body_of(TokenizeRequest),
)
async def tokenize(request: Request) -> Response:
    """A picture stands in the tokens as many times the model's picture token as it takes places."""
    return await cancel_on_disconnect(request.receive, _tokenize(request))


@router.post(
    "/detokenize",
    summary="The text of tokens",
    response_model=None,
    responses=answers_with(Detokenized, "The text"),
    openapi_extra=body_of(DetokenizeRequest),
)
async def detokenize(request: Request) -> Response:
    """Special tokens have no text; bytes that are no whole character become U+FFFD."""
    return await cancel_on_disconnect(request.receive, _detokenize(request))


async def count_chat_tokens(request: Request, chat: ChatRequest) -> int:
    """Tokens of a chat's prompt. Raises ApiError."""
    model, jobs, pixels = await chat_jobs(request, chat)
    return len((await _told(request, model, _counting(jobs[0]), pixels)).token_ids)


async def _tokenize(request: Request) -> Response:
    with context_of(request).body.consume() as raw:
        asked, chat = await parsed(request, raw, _parse_tokenize)
        if chat is not None:
            model, jobs, pixels = await chat_jobs(request, chat)
            job, field = _counting(jobs[0]), "messages"
        else:
            text = asked.prompt or ""
            check_text(len(text.encode()), services_of(request).settings.max_text_kb * 1024, param="prompt")
            model = await services_of(request).registry.find(asked.model)
            job, pixels, field = _raw(request, text, model, "tokenize"), {}, "prompt"
    event = await _told(request, model, job, pixels, field)
    return JSONResponse(
        {
            "count": len(event.token_ids),
            "max_model_len": model.context_length,
            "tokens": list(event.token_ids),
            "token_strs": None,
        }
    )


async def _detokenize(request: Request) -> Response:
    with context_of(request).body.consume() as raw:
        asked = await parsed(request, raw, lambda body: parse_request(DetokenizeRequest, body))
    model = await services_of(request).registry.find(asked.model)
    event = await _told(request, model, _raw(request, asked.tokens, model, "detokenize"), {}, "tokens")
    return JSONResponse({"prompt": event.text})


def _parse_tokenize(raw: bytes) -> tuple[TokenizeRequest, ChatRequest | None]:
    asked = parse_request(TokenizeRequest, raw)
    if asked.messages is None:
        return asked, None
    names = ("model", "messages", "tools", "tool_choice", "continue_final_message", "add_generation_prompt")
    form: dict[str, Any] = {name: getattr(asked, name) for name in names}
    return asked, as_chat(form, {})


def _raw(request: Request, prompt: Any, model: ServedModel, task: Any) -> Job:
    ttl_s = services_of(request).settings.request_timeout_s
    return raw_job(prompt, model, tenant=context_of(request).tenant, ttl_s=ttl_s, task=task)


def _counting(job: Job) -> Job:
    """The job without an answer."""
    sampling = replace(job.sampling, grammar=None, max_tokens=1)
    return replace(job, job_id=new_job_id("tok"), sampling=sampling, task="tokenize")


async def _told(
    request: Request, model: ServedModel, job: Job, pixels: dict[str, bytes], field: str = "messages"
) -> Event:
    """The one event of such a job."""
    opened = await open_jobs(request, model, [job], pixels, field=field)
    await opened.outputs.aclose()
    return opened.first[1]
