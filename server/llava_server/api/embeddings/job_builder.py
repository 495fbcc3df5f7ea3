"""Conversion of embedding requests to jobs (one per input), and of their outputs to the response."""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from llava_wire.messages.job import Job

from llava_server.api.chat.conversation import ImageSource
from llava_server.api.chat.job_builder import raw_job
from llava_server.api.chat.request_handler import JobSet, image_owner, load_image
from llava_server.api.embeddings.request import EmbeddingInput, EmbeddingRequest
from llava_server.api.embeddings.response import Embedding, EmbeddingList, EmbeddingUsage
from llava_server.api.fields.messages import ImagePart
from llava_server.api.parse import check_num_images, check_text
from llava_server.generation.collect import CollectedChoice
from llava_server.lifespan import Services
from llava_server.settings import Settings

__all__ = ["MAX_PARALLEL_JOBS", "as_numbers", "build_embedding_jobs", "to_embedding_list"]

# Maximum number of queued jobs per request: enough to fill a worker's batch, but far below the limit per API
# key.
MAX_PARALLEL_JOBS = 32


async def build_embedding_jobs(services: Services, request: EmbeddingRequest, *, tenant: str) -> JobSet:
    """Check the size of a request, look up its model, load its images and return its jobs.

    Raises ApiError.
    """
    _check_sizes(services.settings, request.inputs)
    model = await services.registry.find(request.model)
    priority = services.api_keys.priority(tenant)
    jobs: list[Job] = []
    pixels: dict[str, bytes] = {}
    for field, item in zip(request.fields, request.inputs, strict=True):
        prompt: Any = item
        if isinstance(item, ImagePart):
            url, detail = item.image_url.url, item.image_url.detail
            source = ImageSource(f"{field}.image_url.url", url, is_low_detail=detail == "low")
            owner = image_owner(tenant, request.cache_salt)
            image = await load_image(services, source, model, tenant=tenant, owner=owner)
            prompt, pixels[image.ref.digest] = image.ref, image.pixels
        ttl_s = services.settings.request_timeout_s
        job = msgspec.structs.replace(
            raw_job(prompt, model, tenant=tenant, priority=priority, ttl_s=ttl_s, task="embed"),
            cache_salt=request.cache_salt or "",
            truncate_prompt_tokens=request.truncate_prompt_tokens,
            is_normalized=request.normalize is not False,
        )
        jobs.append(msgspec.structs.replace(job, version=job.required_version))
    return JobSet(model, jobs, pixels)


def to_embedding_list(
    request: EmbeddingRequest, outputs: Sequence[CollectedChoice], model_name: str
) -> EmbeddingList:
    """Return the response for the outputs of all jobs, in the order of the inputs."""
    encode = _as_base64 if request.encoding_format == "base64" else as_numbers
    data = [
        Embedding(index=index, embedding=encode(output.final.vector)) for index, output in enumerate(outputs)
    ]
    num_tokens = sum(output.final.num_prompt_tokens for output in outputs)
    return EmbeddingList(data=data, model=model_name, usage=EmbeddingUsage(num_tokens, num_tokens))


def _check_sizes(settings: Settings, inputs: list[EmbeddingInput]) -> None:
    num_bytes = sum(len(text.encode()) for text in inputs if isinstance(text, str))
    check_text(num_bytes, settings.max_text_kb * 1024, param="input")
    num_images = sum(isinstance(part, ImagePart) for part in inputs)
    check_num_images(num_images, settings.max_images, param="input")


def as_numbers(vector: bytes) -> list[float]:
    """Return the numbers of a vector of little-endian 32-bit floats."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
