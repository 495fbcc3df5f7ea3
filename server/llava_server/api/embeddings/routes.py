"""POST /v1/embeddings: embeddings of texts and images. Each input is one job."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request_handler import JobSet, RequestHandler
from llava_server.api.embeddings.job_builder import (
    MAX_PARALLEL_JOBS,
    build_embedding_jobs,
    to_embedding_list,
)
from llava_server.api.embeddings.request import EmbeddingRequest
from llava_server.api.embeddings.response import EmbeddingList
from llava_server.api.openapi.document import Operation
from llava_server.api.openapi.headers import QUEUE
from llava_server.api.parse import parse_request
from llava_server.generation.collect import CollectedChoice, num_event_bytes
from llava_server.generation.disconnect import cancel_on_disconnect

__all__ = ["Embeddings", "compute_embeddings", "router"]

router = APIRouter(tags=["embeddings"])


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
    """The outputs of all inputs, and the queue headers of the first jobs."""

    outputs: list[CollectedChoice]
    headers: dict[str, str]

    @property
    def num_tokens(self) -> int:
        return sum(output.final.num_prompt_tokens for output in self.outputs)


async def compute_embeddings(handler: RequestHandler, job_set: JobSet, fields: Sequence[str]) -> Embeddings:
    """Run the jobs. ``fields`` are the request fields of the inputs, for error messages. Raises ApiError."""
    outputs: list[CollectedChoice] = []
    headers: dict[str, str] = {}
    for begin in range(0, len(job_set.jobs), MAX_PARALLEL_JOBS):
        part = slice(begin, begin + MAX_PARALLEL_JOBS)
        part_set = JobSet(job_set.model, job_set.jobs[part], job_set.pixels)
        generation = await handler.submit(part_set, field=fields[part])
        headers = headers or generation.queue_headers
        outputs += await handler.collect(generation)
    return Embeddings(outputs, headers)


async def _create_embeddings(handler: RequestHandler) -> Response:
    with handler.body() as raw:
        request = await handler.parse(raw, lambda body: parse_request(EmbeddingRequest, body))
        job_set = await build_embedding_jobs(handler.services, request, tenant=handler.tenant)
    outputs, headers = await compute_embeddings(handler, job_set, request.fields)
    build = partial(to_embedding_list, request, outputs, job_set.model.name)
    return await handler.encoded(num_event_bytes(outputs), build, headers)
