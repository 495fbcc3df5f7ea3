"""From a parsed request to its answer, the same for every route: model, pictures, jobs, first event, reply.

    parsed  ->  open_chat  ->  Opened (model, choices, first event)  ->  reply (stream or whole)

The status line waits for the first event, so an error is a proper 4xx or 5xx in streaming mode too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from llava_wire.controller_side.queue_status import QueuePosition
from llava_wire.messages.event import Event
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import Job
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.api.chat.request import ChatRequest
from llava_server.api.job_builder import WantedPicture, images_of, to_jobs
from llava_server.api.parse import check_sizes, idempotency_key
from llava_server.errors import ApiError
from llava_server.generation.collect import collect
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.generation.serializer import Serializer
from llava_server.generation.sse_response import EventStream, stream_pace
from llava_server.images.errors import ImageError
from llava_server.images.loader import PreprocessedImage
from llava_server.lifespan import Services, services_of
from llava_server.request_context import context_of
from llava_server.request_metrics import ChoiceMetrics
from llava_server.tracing import span
from llava_server.worker_registry import ServedModel

__all__ = [
    "Opened",
    "chat_jobs",
    "jobs_of",
    "open_chat",
    "open_jobs",
    "parsed",
    "queue_headers",
    "reply",
    "take_picture",
]

_EVERYBODY = "*"  # in place of a tenant's name, and none of these
_LARGE_BODY_BYTES = 64 * 1024  # above: parsed in a thread, so that other streams do not wait
_GRIDS = ("anyres", "hd")

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """An answer that has begun; ``job`` is its first choice's. Who has it must ``aclose`` the outputs."""

    job: Job
    model: ServedModel
    outputs: MergedOutputs
    first: tuple[int, Event]


async def parsed(request: Request, raw: bytes, parse: Callable[[bytes], T]) -> T:
    """The body as a request. Raises ApiError."""
    _check_content_type(request)
    if len(raw) <= _LARGE_BODY_BYTES:
        return parse(raw)
    run = asyncio.get_running_loop().run_in_executor
    return await run(services_of(request).parser_threads, parse, raw)


async def open_chat(request: Request, parse: Callable[[bytes], tuple[T, ChatRequest]]) -> tuple[T, Opened]:
    """Everything up to the first event. ``parse`` gives the request in its own words and as a chat. The body
    is let go as soon as its pictures are taken. Raises ApiError."""
    with context_of(request).body.consume() as raw:
        own, chat = await parsed(request, raw, parse)
        model, jobs, pixels = await chat_jobs(request, chat)
    is_kept = idempotency_key(request.headers) is not None
    return own, await open_jobs(request, model, jobs, pixels, is_kept=is_kept)


async def chat_jobs(request: Request, chat: ChatRequest) -> tuple[ServedModel, list[Job], dict[str, bytes]]:
    """The jobs of a chat and the pixels beside them. Raises ApiError."""
    key = idempotency_key(request.headers)
    return await jobs_of(services_of(request), chat, tenant=context_of(request).tenant, key=key)


async def jobs_of(
    services: Services, chat: ChatRequest, *, tenant: str, key: str | None
) -> tuple[ServedModel, list[Job], dict[str, bytes]]:
    """As ``chat_jobs``, whoever asks; with a ``key`` the same chat makes the same jobs."""
    check_sizes(
        chat, max_text_bytes=services.settings.max_text_kb * 1024, max_images=services.settings.max_images
    )
    model = await services.registry.find(chat.model)
    owner = _EVERYBODY if chat.cache_scope == "public" else tenant
    wanted = images_of(chat)
    with span("pictures", num_pictures=len(wanted)) if wanted else nullcontext():
        pictures = [await take_picture(services, each, model, owner) for each in wanted]
    ttl_s = services.settings.request_timeout_s
    jobs = to_jobs(chat, pictures, model, tenant=tenant, ttl_s=ttl_s, idempotency_key=key)
    return model, jobs, {picture.ref.digest: picture.pixels for picture in pictures}


async def open_jobs(
    request: Request,
    model: ServedModel,
    jobs: Sequence[Job],
    pixels: Mapping[str, bytes],
    *,
    is_kept: bool = False,
    field: str | Sequence[str] = "messages",
) -> Opened:
    """The jobs submitted, and the first event of any of them. Who ``is_kept`` outlives its connection; an
    error names the ``field``. Raises ApiError."""
    context_of(request).job_id = jobs[0].job_id
    outputs = MergedOutputs(services_of(request).controller, is_kept=is_kept, field=field)
    try:
        await outputs.submit(jobs[:1], pixels)
        with span("first event"):
            index, first = await outputs.next()
        if first.final is not None and first.final.error is not None:
            raise outputs.failure(index, first.final.error)
        # Only now: where the first choice runs, the others find the prompt computed.
        await outputs.submit(jobs[1:], pixels)
    except BaseException:
        await outputs.aclose()
        raise
    return Opened(jobs[0], model, outputs, (index, first))


async def reply(request: Request, opened: Opened, serializer: Serializer, *, is_stream: bool) -> Response:
    """The response, written by the serializer. Closes the outputs. Raises ApiError and ClientDisconnected."""
    services, outputs = services_of(request), opened.outputs
    arrived_at, metrics = context_of(request).arrived_at, services.metrics
    meters = [ChoiceMetrics(metrics, opened.model.name, arrived_at=arrived_at) for _ in range(len(outputs))]
    told = queue_headers(outputs.place)
    if is_stream:
        stream = EventStream(outputs, opened.first, serializer, meters, stream_pace(services.settings))
        stream.headers.update(told)
        return stream
    try:
        answers = await cancel_on_disconnect(request.receive, collect(outputs, opened.first, meters))
    finally:
        await outputs.aclose()
    return JSONResponse(serializer.to_response(answers), headers=told)


def queue_headers(place: QueuePosition | None) -> dict[str, str]:
    """What the queue was like when the request came, told with its first event: see docs/reliability.md."""
    if place is None:
        return {}
    headers = {"x-queue-position": str(place.num_ahead)}
    return headers if place.wait_s is None else {**headers, "x-queue-estimate-s": f"{place.wait_s:.3f}"}


def _check_content_type(request: Request) -> None:
    """A web page of another site may send forms and plain text here unasked, but not JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            "unsupported_media_type", "the body must be JSON: send the header Content-Type: application/json"
        )


async def take_picture(
    services: Services, wanted: WantedPicture, model: ServedModel, owner: str
) -> PreprocessedImage:
    """Fitted for the model. Raises ApiError."""
    spec = _base_view(model.image_spec) if wanted.is_low else model.image_spec
    try:
        return await services.image_loader.load(wanted.url, spec, tenant=owner)
    except ImageError as refused:
        raise ApiError(refused.code, f"{wanted.param}: {refused.message}", param=wanted.param) from refused


def _base_view(spec: ImageSpec) -> ImageSpec:
    """All of the picture in one tile: of a model with a grid its first one, of others their only one."""
    return msgspec.structs.replace(spec, fit="squash", grid=()) if spec.fit in _GRIDS else spec
