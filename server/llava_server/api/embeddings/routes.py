"""POST /v1/embeddings: the model's own vectors of texts and pictures, each made as one job."""

from __future__ import annotations

import array
import base64
import sys
from typing import Any

from fastapi import APIRouter
from llava_wire.messages.event import Final
from llava_wire.messages.job import Job
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.api.embeddings.request import EmbeddingInput, EmbeddingRequest
from llava_server.api.embeddings.response import EmbeddingList
from llava_server.api.fields.messages import ImagePart
from llava_server.api.handler import open_jobs, parsed, queue_headers, take_picture
from llava_server.api.job_builder import WantedPicture, raw_job
from llava_server.api.openapi.document import answers_with, body_of
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import check_num_images, check_text, parse_request
from llava_server.generation.collect import collect
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.lifespan import services_of
from llava_server.request_context import context_of
from llava_server.request_metrics import ChoiceMetrics
from llava_server.worker_registry import ServedModel

__all__ = ["router"]

router = APIRouter(tags=["embeddings"])

_AT_ONCE = 32  # jobs of one request: enough to fill a worker's batch, far below a key's share of the queue


@router.post(
    "/v1/embeddings",
    summary="Vectors of texts and pictures",
    response_model=None,
    responses=answers_with(EmbeddingList, "The vectors", headers=QUEUE),
    openapi_extra=body_of(EmbeddingRequest),
)
async def create_embeddings(request: Request) -> Response:
    """Of length 1. Of a text the decoder's last hidden state at its last token; of a picture the mean of its
    projected patch features. The two are not comparable with each other, and no model was trained for it."""
    return await cancel_on_disconnect(request.receive, _create(request))


async def _create(request: Request) -> Response:
    with context_of(request).body.consume() as raw:
        asked = await parsed(request, raw, lambda body: parse_request(EmbeddingRequest, body))
        _check_sizes(request, asked.inputs)
        model = await services_of(request).registry.find(asked.model)
        jobs, pixels = await _jobs(request, asked, model)
    ends: list[Final] = []
    headers: dict[str, str] = {}
    for first in range(0, len(jobs), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        told, more = await _ends(request, model, jobs[some], pixels, asked.fields[some])
        headers = headers or told
        ends += more
    num_tokens = sum(end.num_prompt_tokens for end in ends)
    is_packed = asked.encoding_format == "base64"
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _told(end.vector, is_packed)}
            for index, end in enumerate(ends)
        ],
        "model": model.name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return JSONResponse(body, headers=headers)


def _check_sizes(request: Request, inputs: list[EmbeddingInput]) -> None:
    settings = services_of(request).settings
    num_bytes = sum(len(each.encode()) for each in inputs if isinstance(each, str))
    check_text(num_bytes, settings.max_text_kb * 1024, param="input")
    num_images = sum(isinstance(each, ImagePart) for each in inputs)
    check_num_images(num_images, settings.max_images, param="input")


async def _jobs(
    request: Request, asked: EmbeddingRequest, model: ServedModel
) -> tuple[list[Job], dict[str, bytes]]:
    services, tenant = services_of(request), context_of(request).tenant
    jobs: list[Job] = []
    pixels: dict[str, bytes] = {}
    for field, each in zip(asked.fields, asked.inputs, strict=True):
        prompt: Any = each
        if isinstance(each, ImagePart):
            is_low = each.image_url.detail == "low"
            wanted = WantedPicture(f"{field}.image_url.url", each.image_url.url, is_low)
            picture = await take_picture(services, wanted, model, tenant)
            prompt, pixels[picture.ref.digest] = picture.ref, picture.pixels
        ttl_s = services.settings.request_timeout_s
        jobs.append(raw_job(prompt, model, tenant=tenant, ttl_s=ttl_s, task="embed"))
    return jobs, pixels


async def _ends(
    request: Request, model: ServedModel, jobs: list[Job], pixels: dict[str, bytes], fields: list[str]
) -> tuple[dict[str, str], list[Final]]:
    """What to tell of the queue, and the jobs' ends, in their order. Raises ApiError, also if one failed."""
    metrics, arrived_at = services_of(request).metrics, context_of(request).arrived_at
    meters = [ChoiceMetrics(metrics, model.name, arrived_at=arrived_at) for _ in jobs]
    opened = await open_jobs(request, model, jobs, pixels, field=fields)
    try:
        answers = await collect(opened.outputs, opened.first, meters)
    finally:
        await opened.outputs.aclose()
    return queue_headers(opened.outputs.queue_position), [
        answer.last.final for answer in answers if answer.last.final
    ]


def _told(vector: bytes, is_packed: bool) -> list[float] | str:
    if is_packed:
        return base64.b64encode(vector).decode()
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
