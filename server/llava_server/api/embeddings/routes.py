"""POST /v1/embeddings: embeddings of texts and images. Each input is one job."""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from fastapi import APIRouter
from llava_wire.messages.job import Job
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.conversation import ImageSource
from llava_server.api.chat.job_builder import raw_job
from llava_server.api.chat.request_handler import JobSet, RequestHandler, image_owner, load_image
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

__all__ = ["Embeddings", "as_numbers", "build_embedding_jobs", "compute_embeddings", "router"]

router = APIRouter(tags=["embeddings"])

# Maximum number of queued jobs per request: enough to fill a worker's batch, but far below the limit per API
# key.
_MAX_PARALLEL_JOBS = 32


@router.post("/v1/embeddings", summary="Create embeddings of texts and images")
@Operation("The embeddings", EmbeddingList, headers=QUEUE, request=EmbeddingRequest)
async def create_embeddings(request: Request) -> Response:
    """Returns vectors of unit length, unless normalize is false.

    The embedding of a text is the decoder's last hidden state at the last token. The embedding of an image is
    the mean of its projected patch features. Text embeddings cannot be compared with image embeddings, and
    the models were not trained to produce embeddings.
    """
    return await cancel_on_disconnect(request.receive, _create_embeddings(RequestHandler(request)))


class Embeddings(NamedTuple):
    """The embeddings of all inputs, as little-endian 32-bit floats, the token count and the queue headers."""

    vectors: list[bytes]
    num_tokens: int
    headers: dict[str, str]


async def build_embedding_jobs(handler: RequestHandler, request: EmbeddingRequest) -> JobSet:
    """Check the size of a request, look up its model, load its images and return one job per input.

    Raises ApiError.
    """
    _check_sizes(handler.services.settings, request.inputs)
    model = await handler.services.registry.find(request.model)
    return JobSet(model, *await _build_jobs(handler, request, model))


async def compute_embeddings(handler: RequestHandler, job_set: JobSet, fields: Sequence[str]) -> Embeddings:
    """Run the jobs. ``fields`` are the request fields of the inputs, for error messages. Raises ApiError."""
    vectors: list[bytes] = []
    num_tokens = 0
    headers: dict[str, str] = {}
    for begin in range(0, len(job_set.jobs), _MAX_PARALLEL_JOBS):
        part = slice(begin, begin + _MAX_PARALLEL_JOBS)
        jobs = JobSet(job_set.model, job_set.jobs[part], job_set.pixels)
        generation = await handler.submit(jobs, field=fields[part])
        headers = headers or generation.queue_headers
        for output in await handler.collect(generation):
            vectors.append(output.final.vector)
            num_tokens += output.final.num_prompt_tokens
    return Embeddings(vectors, num_tokens, headers)


def as_numbers(vector: bytes) -> list[float]:
    """Return the numbers of a vector of little-endian 32-bit floats."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


async def _create_embeddings(handler: RequestHandler) -> Response:
    with handler.body() as raw:
        request = await handler.parse(raw, lambda body: parse_request(EmbeddingRequest, body))
        job_set = await build_embedding_jobs(handler, request)
    embeddings = await compute_embeddings(handler, job_set, request.fields)
    encode = _as_base64 if request.encoding_format == "base64" else as_numbers
    data = [
        Embedding(index=index, embedding=encode(vector)) for index, vector in enumerate(embeddings.vectors)
    ]
    usage = EmbeddingUsage(embeddings.num_tokens, embeddings.num_tokens)
    body = EmbeddingList(data=data, model=job_set.model.name, usage=usage)
    return JSONResponse(body, headers=embeddings.headers)


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
            owner = image_owner(handler.tenant, request.cache_salt)
            image = await load_image(handler.services, source, model, owner)
            prompt, pixels[image.ref.digest] = image.ref, image.pixels
        job = raw_job(prompt, model, tenant=handler.tenant, ttl_s=ttl_s, task="embed")
        job = msgspec.structs.replace(
            job,
            cache_salt=request.cache_salt or "",
            truncate_prompt_tokens=request.truncate_prompt_tokens,
            is_normalized=request.normalize is not False,
        )
        jobs.append(msgspec.structs.replace(job, version=job.required_version))
    return jobs, pixels


def _as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
