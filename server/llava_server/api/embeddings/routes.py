"""POST /v1/embeddings: embeddings of texts and images. Each input is one job."""

from __future__ import annotations

import array
import base64
import sys
from typing import Any

from fastapi import APIRouter
from llava_wire.messages.job import Job
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.conversation import ImageSource
from llava_server.api.chat.job_builder import raw_job
from llava_server.api.chat.request_handler import JobSet, RequestHandler, load_image
from llava_server.api.embeddings.request import EmbeddingInput, EmbeddingRequest
from llava_server.api.embeddings.response import Embedding, EmbeddingList, EmbeddingUsage
from llava_server.api.fields.messages import ImagePart
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import check_num_images, check_text, parse_request
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.response_model import JSONResponse
from llava_server.settings import Settings
from llava_server.worker_registry import ServedModel

__all__ = ["router"]

router = APIRouter(tags=["embeddings"])

# Maximum number of queued jobs per request: enough to fill a worker's batch, but far below the limit per API
# key.
_MAX_PARALLEL_JOBS = 32


@router.post("/v1/embeddings", summary="Create embeddings of texts and images")
@Operation("The embeddings", EmbeddingList, headers=QUEUE, request=EmbeddingRequest)
async def create_embeddings(request: Request) -> Response:
    """Returns unit-length vectors.

    The embedding of a text is the decoder's last hidden state at the last token. The embedding of an image is
    the mean of its projected patch features. Text embeddings cannot be compared with image embeddings, and
    the models were not trained to produce embeddings.
    """
    return await cancel_on_disconnect(request.receive, _create_embeddings(RequestHandler(request)))


async def _create_embeddings(handler: RequestHandler) -> Response:
    with handler.body() as raw:
        request = await handler.parse(raw, lambda body: parse_request(EmbeddingRequest, body))
        _check_sizes(handler.services.settings, request.inputs)
        model = await handler.services.registry.find(request.model)
        jobs, pixels = await _build_jobs(handler, request, model)
    data: list[Embedding] = []
    num_tokens = 0
    headers: dict[str, str] = {}
    for begin in range(0, len(jobs), _MAX_PARALLEL_JOBS):
        part = slice(begin, begin + _MAX_PARALLEL_JOBS)
        generation = await handler.submit(JobSet(model, jobs[part], pixels), field=request.fields[part])
        headers = headers or generation.queue_headers
        for output in await handler.collect(generation):
            vector = _vector(output.final.vector, is_base64=request.encoding_format == "base64")
            data.append(Embedding(index=len(data), embedding=vector))
            num_tokens += output.final.num_prompt_tokens
    body = EmbeddingList(data=data, model=model.name, usage=EmbeddingUsage(num_tokens, num_tokens))
    return JSONResponse(body, headers=headers)


def _check_sizes(settings: Settings, inputs: list[EmbeddingInput]) -> None:
    num_bytes = sum(len(text.encode()) for text in inputs if isinstance(text, str))
    check_text(num_bytes, settings.max_text_kb * 1024, param="input")
    num_images = sum(isinstance(part, ImagePart) for part in inputs)
    check_num_images(num_images, settings.max_images, param="input")


async def _build_jobs(
    handler: RequestHandler, request: EmbeddingRequest, model: ServedModel
) -> tuple[list[Job], dict[str, bytes]]:
    """Return one job per input, and the images' pixels, keyed by image digest."""
    ttl_s = handler.services.settings.request_timeout_s
    jobs: list[Job] = []
    pixels: dict[str, bytes] = {}
    for field, item in zip(request.fields, request.inputs, strict=True):
        prompt: Any = item
        if isinstance(item, ImagePart):
            url, detail = item.image_url.url, item.image_url.detail
            source = ImageSource(f"{field}.image_url.url", url, is_low_detail=detail == "low")
            image = await load_image(handler.services, source, model, handler.tenant)
            prompt, pixels[image.ref.digest] = image.ref, image.pixels
        jobs.append(raw_job(prompt, model, tenant=handler.tenant, ttl_s=ttl_s, task="embed"))
    return jobs, pixels


def _vector(data: bytes, *, is_base64: bool) -> list[float] | str:
    if is_base64:
        return base64.b64encode(data).decode()
    numbers = array.array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
