"""The endpoints of batches: run the body of a request and return the same response as the endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import msgspec
from llava_wire.errors import ResponseTooLarge
from llava_wire.messages.job import LOWEST_PRIORITY, Job

from llava_server.api.batches.request import BatchEndpoint
from llava_server.api.chat.job_builder import seed_for_key, with_keyed_ids
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.request_handler import JobSet, build_chat_jobs, run_encoder, run_parser
from llava_server.api.chat.serializer import ChatSerializer
from llava_server.api.chat.stored_chat import new_chat_record
from llava_server.api.completions.job_builder import build_completion_jobs
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.completions.serializer import CompletionSerializer
from llava_server.api.embeddings.job_builder import (
    MAX_PARALLEL_JOBS,
    build_embedding_jobs,
    to_embedding_list,
)
from llava_server.api.embeddings.request import EmbeddingRequest
from llava_server.api.parse import parse_request
from llava_server.api.responses.conversation import new_record, with_stored_items
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.responses.serializer import ResponsesSerializer, with_note
from llava_server.api.responses.to_chat import parse_response_request, to_chat
from llava_server.api.storage.stored import store_too_large, stored
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice, num_event_bytes
from llava_server.lifespan import Services
from llava_server.response_model import ResponseModel

__all__ = ["ENDPOINTS", "LineContext", "RunJobs"]

T = TypeVar("T")


class RunJobs(Protocol):
    """Runs jobs and returns their outputs. Raises ApiError."""

    async def __call__(
        self, jobs: Sequence[Job], pixels: Mapping[str, bytes], field: str | Sequence[str]
    ) -> list[CollectedChoice]: ...


@dataclass(frozen=True)
class LineContext:
    """What is needed to run one request of a batch.

    ``key`` identifies the request. Every server derives the same job IDs and seeds from it.
    """

    services: Services
    tenant: str
    key: str
    run_jobs: RunJobs

    async def parse(self, parse: Callable[[bytes], T], body: bytes) -> T:
        """Return the result of ``parse`` for the body."""
        return await run_parser(self.services, self.tenant, len(body), partial(parse, body))

    async def encode(
        self,
        build: Callable[[list[CollectedChoice]], ResponseModel],
        choices: list[CollectedChoice],
    ) -> bytes:
        """Return the JSON text of the response that ``build`` returns for these choices."""
        num_bytes = num_event_bytes(choices)
        return await run_encoder(self.services, self.tenant, num_bytes, partial(build, choices))


async def _chat(context: LineContext, body: bytes) -> bytes:
    services, tenant = context.services, context.tenant
    chat = await context.parse(partial(parse_request, ChatRequest), body)
    _reject_stream(chat.stream)
    job_set = await build_chat_jobs(services, chat, tenant=tenant, idempotency_key=context.key)
    job_set = _at_lowest_priority(job_set)
    first = job_set.jobs[0]
    storing: AbstractAsyncContextManager[None] = nullcontext()
    if chat.store:
        encode = partial(new_chat_record, chat, first.job_id)
        record = await run_parser(services, tenant, len(body), encode)
        storing = stored(services.responses, record, tenant=tenant, is_listed=True)
    try:
        async with storing:
            choices = await context.run_jobs(job_set.jobs, job_set.pixels, "messages")
    except ResponseTooLarge as error:
        raise store_too_large(error) from error
    fingerprint = job_set.model.fingerprint(choices[0].model_digest)
    return await context.encode(ChatSerializer(first, fingerprint).to_response, choices)


async def _response(context: LineContext, body: bytes) -> bytes:
    services, tenant = context.services, context.tenant
    request, chat = await context.parse(parse_response_request, body)
    _reject_stream(request.stream)
    if request.background:
        raise ApiError(
            "invalid_value", "background must not be true in a batch. Remove it.", param="background"
        )
    if chat is None:
        with services.loaded_data.hold(tenant) as loaded:
            request, whole = await with_stored_items(services, request, loaded, tenant=tenant)
            chat = await services.threads.run(tenant, partial(to_chat, whole))
    job_set = await build_chat_jobs(services, chat, tenant=tenant, idempotency_key=context.key)
    job_set = _at_lowest_priority(job_set)
    if request.store is not False:
        encode = partial(new_record, request, job_set.jobs[0].job_id)
        record = await run_parser(services, tenant, len(body), encode)
        try:
            async with stored(services.responses, record, tenant=tenant):
                return await _generated(context, request, job_set)
        except ResponseTooLarge as error:
            if request.store:
                raise store_too_large(error) from error
    return await _generated(context, request.model_copy(update={"store": False}), job_set)


async def _generated(context: LineContext, request: ResponseRequest, job_set: JobSet) -> bytes:
    job = with_note(job_set.jobs[0], request)
    serializer = ResponsesSerializer(job)
    if request.store is False:
        job = msgspec.structs.replace(job, note="")
    choices = await context.run_jobs([job], job_set.pixels, "input")
    return await context.encode(serializer.to_response, choices)


async def _completion(context: LineContext, body: bytes) -> bytes:
    request = await context.parse(partial(parse_request, CompletionRequest), body)
    _reject_stream(request.stream)
    if request.seed is None:
        request = request.model_copy(update={"seed": seed_for_key(context.tenant, context.key)})
    job_set = await build_completion_jobs(context.services, request, tenant=context.tenant)
    jobs = with_keyed_ids(_at_lowest_priority(job_set).jobs, context.key)
    choices = await context.run_jobs(jobs, job_set.pixels, "prompt")
    fingerprint = job_set.model.fingerprint(choices[0].model_digest)
    return await context.encode(CompletionSerializer(request, jobs[0], fingerprint).to_response, choices)


async def _embeddings(context: LineContext, body: bytes) -> bytes:
    request = await context.parse(partial(parse_request, EmbeddingRequest), body)
    job_set = await build_embedding_jobs(context.services, request, tenant=context.tenant)
    jobs = with_keyed_ids(_at_lowest_priority(job_set).jobs, context.key)
    outputs: list[CollectedChoice] = []
    for begin in range(0, len(jobs), MAX_PARALLEL_JOBS):
        part = slice(begin, begin + MAX_PARALLEL_JOBS)
        outputs += await context.run_jobs(jobs[part], job_set.pixels, request.fields[part])
    build = partial(to_embedding_list, request, model_name=job_set.model.name)
    return await context.encode(build, outputs)


def _at_lowest_priority(job_set: JobSet) -> JobSet:
    jobs = [msgspec.structs.replace(job, priority=LOWEST_PRIORITY) for job in job_set.jobs]
    return JobSet(job_set.model, jobs, job_set.pixels)


def _reject_stream(stream: bool | None) -> None:
    if stream:
        raise ApiError("invalid_value", "stream must not be true in a batch. Remove it.", param="stream")


# Runs the body of a request and returns the response in JSON. Raises ApiError.
ENDPOINTS: Mapping[BatchEndpoint, Callable[[LineContext, bytes], Awaitable[bytes]]] = {
    "/v1/chat/completions": _chat,
    "/v1/responses": _response,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
}
