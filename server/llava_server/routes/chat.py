"""POST /v1/chat/completions: the path of a request, in order.

body -> parse -> model -> pictures -> jobs -> submit -> first event -> stream or whole answer
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from llava_wire import Event
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.choices import Choices
from llava_server.errors import ApiError, from_job_error
from llava_server.images.intake import FittedPicture
from llava_server.images.refusal import PictureRefused
from llava_server.metrics import AnswerMeter
from llava_server.registry import ServedModel
from llava_server.schemas import ChatRequest
from llava_server.services import Services, services_of
from llava_server.streaming import EventStream, collect, stream_pace, until_gone
from llava_server.translate import image_urls, to_jobs
from llava_server.validation import check_sizes, idempotency_key, parse_chat_request
from llava_server.writer import AnswerWriter

__all__ = ["request_schemas", "router"]

router = APIRouter(tags=["chat"])

_EVERYBODY = "*"  # in place of a tenant's name, and none of these
_LARGE_BODY_BYTES = 64 * 1024  # above: parsed in a thread, so that other streams do not wait
_REF = "#/components/schemas/{model}"
_ERROR = {"description": "What is wrong, in OpenAI's shape: error.code, error.message, error.param."}


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation with pictures",
    response_model=None,
    responses={
        200: {
            "description": "chat.completion, or with stream true text/event-stream of chat.completion.chunk"
        },
        **{status: _ERROR for status in (400, 401, 404, 408, 409, 413, 415, 429, 500, 503, 504)},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model="ChatRequest")}}},
        }
    },
)
async def create_chat_completion(request: Request) -> Response:
    """The status line waits for the first event, so an error is a proper 4xx or 5xx in streaming mode too."""
    chat, model, choices, first = await until_gone(request.receive, _open(request))
    arrived_at, metrics = request.state.arrived_at, services_of(request).metrics
    meters = [AnswerMeter(metrics, model.name, arrived_at=arrived_at) for _ in range(len(choices))]
    include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
    writer = AnswerWriter(
        choices.job_id,
        model.name,
        model.fingerprint,
        include_usage=include_usage,
        tells_logprobs=chat.num_logprobs is not None,
    )
    if chat.stream:
        pace = stream_pace(services_of(request).settings)
        return EventStream(choices, first, writer, meters, pace, include_usage=include_usage)
    try:
        answers = await until_gone(request.receive, collect(choices, first, meters))
    finally:
        await choices.aclose()
    return JSONResponse(writer.completion(answers))


def request_schemas() -> dict[str, Any]:
    """The request model and what it is made of, for the OpenAPI document."""
    schema = ChatRequest.model_json_schema(ref_template=_REF)
    return {**schema.pop("$defs", {}), "ChatRequest": schema}


async def _open(request: Request) -> tuple[ChatRequest, ServedModel, Choices, tuple[int, Event]]:
    """Everything up to the first event. Raises ApiError."""
    services = services_of(request)
    _check_content_type(request)
    with request.state.body.taken() as raw:
        chat = await _parse(services, raw)
        check_sizes(
            chat, max_text_bytes=services.settings.max_text_kb * 1024, max_images=services.settings.max_images
        )
        model = await services.registry.find(chat.model)
        tenant = request.state.tenant
        owner = _EVERYBODY if chat.cache_scope == "public" else tenant
        pictures = [await _take(services, param, url, model, owner) for param, url in image_urls(chat)]
    key = idempotency_key(request.headers)
    ttl_s = services.settings.request_timeout_s
    jobs = to_jobs(chat, pictures, model, tenant=tenant, ttl_s=ttl_s, idempotency_key=key)
    request.state.job_id = jobs[0].job_id
    pixels = {picture.ref.digest: picture.pixels for picture in pictures}
    choices = Choices(services.controller, is_kept=key is not None)
    try:
        await choices.submit(jobs[:1], pixels)
        index, first = await choices.next()
        if first.final is not None and first.final.error is not None:
            raise from_job_error(first.final.error)
        # Only now: where the first choice runs, the others find the prompt computed.
        await choices.submit(jobs[1:], pixels)
    except BaseException:
        await choices.aclose()
        raise
    return chat, model, choices, (index, first)


def _check_content_type(request: Request) -> None:
    """A web page of another site may send forms and plain text here unasked, but not JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            "unsupported_media_type", "the body must be JSON: send the header Content-Type: application/json"
        )


async def _parse(services: Services, raw: bytes) -> ChatRequest:
    if len(raw) <= _LARGE_BODY_BYTES:
        return parse_chat_request(raw)
    return await asyncio.get_running_loop().run_in_executor(services.parsers, parse_chat_request, raw)


async def _take(services: Services, param: str, url: str, model: ServedModel, owner: str) -> FittedPicture:
    try:
        return await services.intake.take(url, model.image_spec, tenant=owner)
    except PictureRefused as refused:
        raise ApiError(refused.code, f"{param}: {refused.message}", param=param) from refused
