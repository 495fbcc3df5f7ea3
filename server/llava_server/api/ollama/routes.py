"""Routes of Ollama's API that generate output or embeddings. Requests are converted to chat requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.job_builder import raw_job, to_sampling_params
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.request_handler import Generation, JobSet, RequestHandler, build_chat_jobs
from llava_server.api.embeddings.job_builder import as_numbers, build_embedding_jobs
from llava_server.api.embeddings.request import EmbeddingRequest
from llava_server.api.embeddings.routes import Embeddings, compute_embeddings
from llava_server.api.ollama.request import (
    EmbedRequest,
    GenerateRequest,
    LegacyEmbedRequest,
    OllamaChatRequest,
)
from llava_server.api.ollama.response import (
    EmbedResponse,
    GenerateResponse,
    LegacyEmbedResponse,
    OllamaChatResponse,
    OllamaOutputMessage,
    timestamp,
)
from llava_server.api.ollama.serializer import (
    ChatSerializer,
    GenerateSerializer,
    OllamaSerializer,
    elapsed_ns,
)
from llava_server.api.ollama.served_model import find_model
from llava_server.api.ollama.to_chat import (
    parse_chat_request,
    parse_generate_request,
)
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import check_text, convert_request, parse_request
from llava_server.error_response import OllamaError
from llava_server.generation.collect import num_event_bytes
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.generation.stream_format import NDJSON
from llava_server.request_context import context_of
from llava_server.response_model import JSONResponse
from llava_server.worker_registry import ServedModel

__all__ = ["router"]

router = APIRouter(tags=["ollama"])

T = TypeVar("T", OllamaChatRequest, GenerateRequest)


@dataclass(frozen=True)
class _Started(Generic[T]):
    """A request, and its generation, which is None if the request has no prompt."""

    request: T
    generation: Generation | None


@router.post("/api/chat", summary="Generate the next message of a conversation (Ollama)")
@Operation(
    "The message, or a stream of its parts unless stream is false. A stream ends with an object with done "
    "set to true or with an error.",
    OllamaChatResponse,
    stream=OllamaChatResponse | OllamaError,
    stream_type=NDJSON,
    error=OllamaError,
    headers=QUEUE,
    request=OllamaChatRequest,
)
async def chat(request: Request) -> Response:
    """If the last message is from the assistant, the model continues it."""
    started = await _start(request, parse_chat_request)
    if started.generation is None:
        empty = OllamaOutputMessage(content="")
        return JSONResponse(
            OllamaChatResponse(
                model=started.request.model,
                created_at=timestamp(),
                message=empty,
                done=True,
                done_reason="load",
            )
        )
    return await _respond(request, started.request, started.generation, ChatSerializer)


@router.post("/api/generate", summary="Generate a response to a prompt (Ollama)")
@Operation(
    "The response, or a stream of its parts unless stream is false. A stream ends with an object with done "
    "set to true or with an error.",
    GenerateResponse,
    stream=GenerateResponse | OllamaError,
    stream_type=NDJSON,
    error=OllamaError,
    headers=QUEUE,
    request=GenerateRequest,
)
async def generate(request: Request) -> Response:
    """The prompt is a user message, unless raw is true."""
    started = await _start(request, parse_generate_request)
    if started.generation is None:
        return JSONResponse(
            GenerateResponse(
                model=started.request.model,
                created_at=timestamp(),
                response="",
                done=True,
                done_reason="load",
            )
        )
    return await _respond(request, started.request, started.generation, GenerateSerializer)


@router.post("/api/embed", summary="Create embeddings of texts (Ollama)")
@Operation("The embeddings", EmbedResponse, error=OllamaError, headers=QUEUE, request=EmbedRequest)
async def embed(request: Request) -> Response:
    """Returns unit-length vectors."""
    return await cancel_on_disconnect(request.receive, _embed(request))


@router.post("/api/embeddings", summary="Create an embedding of a text (Ollama, older route)")
@Operation("The embedding", LegacyEmbedResponse, error=OllamaError, headers=QUEUE, request=LegacyEmbedRequest)
async def embed_one(request: Request) -> Response:
    """Returns a unit-length vector."""
    return await cancel_on_disconnect(request.receive, _embed_one(request))


async def _start(request: Request, parse: Callable[[bytes], tuple[T, ChatRequest | None]]) -> _Started[T]:
    """Parse the request, submit its job and wait for the first event. Raises ApiError, ClientDisconnected."""
    return await cancel_on_disconnect(request.receive, _submit(RequestHandler(request), parse))


async def _submit(
    handler: RequestHandler, parse: Callable[[bytes], tuple[T, ChatRequest | None]]
) -> _Started[T]:
    with handler.body() as raw:
        request, chat_request = await handler.parse(raw, parse)
        model = await find_model(handler.services.registry, request.model)
        if chat_request is None:
            return _Started(request, None)
        field = "prompt" if isinstance(request, GenerateRequest) else "messages"
        if isinstance(request, GenerateRequest) and request.raw:
            jobs = _raw_jobs(handler, request.prompt or "", chat_request, model)
        else:
            chat_request = chat_request.model_copy(update={"model": model.name})
            jobs = await build_chat_jobs(
                handler.services, chat_request, tenant=handler.tenant, idempotency_key=None, field=field
            )
    return _Started(request, await handler.submit(jobs, field=field))


def _raw_jobs(handler: RequestHandler, prompt: str, chat_request: ChatRequest, model: ServedModel) -> JobSet:
    """Return a job whose prompt bypasses the conversation template. Raises ApiError."""
    settings, tenant = handler.services.settings, handler.tenant
    check_text(len(prompt.encode()), settings.max_text_kb * 1024, param="prompt")
    sampling = to_sampling_params(chat_request, model, chat_request.grammar)
    priority, ttl_s = handler.services.api_keys.priority(tenant), settings.request_timeout_s
    job = raw_job(prompt, model, tenant=tenant, priority=priority, ttl_s=ttl_s, sampling=sampling)
    return JobSet(model, [job], {})


async def _respond(
    request: Request,
    body: OllamaChatRequest | GenerateRequest,
    generation: Generation,
    serializer_type: type[OllamaSerializer],
) -> Response:
    serializer = serializer_type(generation.job, body.model, arrived_at=context_of(request).arrived_at)
    return await RequestHandler(request).respond(
        generation, serializer, is_stream=body.is_stream, stream_format=serializer.stream_format
    )


async def _embed(request: Request) -> Response:
    handler = RequestHandler(request)
    with handler.body() as raw:
        body = await handler.parse(raw, lambda raw_body: parse_request(EmbedRequest, raw_body))
    fields = ["input"] if isinstance(body.input, str) else [f"input[{n}]" for n in range(len(body.inputs))]
    embeddings = await _embed_texts(handler, body.model, body.inputs, fields)
    build = partial(_embed_response, request, body, embeddings)
    return await handler.encoded(num_event_bytes(embeddings.outputs), build, embeddings.headers)


def _embed_response(request: Request, body: EmbedRequest, embeddings: Embeddings) -> EmbedResponse:
    vectors = [as_numbers(output.final.vector) for output in embeddings.outputs]
    return EmbedResponse(
        model=body.model,
        embeddings=[_shortened(vector, body.dimensions or len(vector)) for vector in vectors],
        total_duration=elapsed_ns(context_of(request).arrived_at),
        load_duration=0,
        prompt_eval_count=embeddings.num_tokens,
    )


async def _embed_one(request: Request) -> Response:
    handler = RequestHandler(request)
    with handler.body() as raw:
        body = await handler.parse(raw, lambda raw_body: parse_request(LegacyEmbedRequest, raw_body))
    embeddings = await _embed_texts(handler, body.model, [body.prompt] if body.prompt else [], ["prompt"])
    vector = as_numbers(embeddings.outputs[0].final.vector) if embeddings.outputs else []
    return JSONResponse(LegacyEmbedResponse(vector), headers=embeddings.headers)


async def _embed_texts(
    handler: RequestHandler, name: str, texts: list[str], fields: Sequence[str]
) -> Embeddings:
    """Return the embeddings of the texts. ``fields`` are their fields in the request. Raises ApiError."""
    model = await find_model(handler.services.registry, name)
    if not texts:
        return Embeddings([], {})
    field = fields[0].partition("[")[0]
    request = convert_request(EmbeddingRequest, {"model": model.name, "input": texts}, {"input": field})
    job_set = await build_embedding_jobs(handler.services, request, tenant=handler.tenant)
    return await compute_embeddings(handler, job_set, fields)


def _shortened(vector: list[float], num_dimensions: int) -> list[float]:
    """Return the first dimensions of a unit-length vector, scaled to unit length."""
    if num_dimensions >= len(vector):
        return vector
    length = math.hypot(*vector[:num_dimensions])
    return [number / length if length else 0.0 for number in vector[:num_dimensions]]
