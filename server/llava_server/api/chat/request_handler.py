"""Request handling shared by all APIs: parse, build jobs, submit, respond."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from llava_wire.controller_side.query_results import JobSnapshot, QueuePosition
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import Event
from llava_wire.messages.job import Job
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.conversation import ImageSource, image_sources
from llava_server.api.chat.job_builder import to_jobs
from llava_server.api.chat.prompt_length import check_prompt_lengths
from llava_server.api.chat.request import AssistantMessage, ChatRequest, FilePart, ImagePart
from llava_server.api.parse import check_num_images, check_text, idempotency_key
from llava_server.api.tools.prompt import tools_text
from llava_server.errors import ApiError, from_store_error, response_not_found
from llava_server.generation.collect import CollectedChoice, collect, num_event_bytes
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.generation.sse import SSE_HEADERS
from llava_server.generation.sse_response import EventStream, Serializer
from llava_server.generation.stream_format import SSE, StreamFormat
from llava_server.images.choose_spec import choose_spec
from llava_server.images.errors import ImageError
from llava_server.images.loader import PreprocessedImage
from llava_server.json_pieces import encode_in_pieces
from llava_server.lifespan import Services, services_of
from llava_server.loaded_data import LoadedBytes
from llava_server.metrics import ChoiceMetrics, EventObserver, NoMetrics
from llava_server.request_context import context_of
from llava_server.response_model import EncodedResponse, ResponseModel
from llava_server.tracing import span
from llava_server.worker_registry import ServedModel

__all__ = [
    "Generation",
    "JobSet",
    "RequestHandler",
    "build_chat_jobs",
    "image_owner",
    "load_image",
    "queue_headers",
    "run_encoder",
    "run_parser",
]

_PUBLIC_SCOPE = "*"  # owner of images whose cache_scope is "public"; never a tenant name
_JSON_TYPE = re.compile(r"application/([!-~]+\+)?json")
_LARGE_BODY_BYTES = 64 * 1024  # larger bodies are parsed in a thread to avoid delaying other streams
_MEMORY_PER_FILE_BYTE = 2  # an image file and its Base64 text

T = TypeVar("T")


@dataclass(frozen=True)
class JobSet:
    """The jobs of a request (one per choice) and the pixels of their images, keyed by image digest."""

    model: ServedModel
    jobs: Sequence[Job]
    pixels: Mapping[str, bytes]


@dataclass(frozen=True)
class Generation:
    """A request that has produced its first event. The caller must close ``outputs``."""

    job: Job  # job of the first choice
    model: ServedModel
    outputs: MergedOutputs
    first: tuple[int, Event]

    @property
    def fingerprint(self) -> str:
        """The ``system_fingerprint`` of the response."""
        return self.model.fingerprint(self.first[1].model_digest)

    @property
    def queue_headers(self) -> dict[str, str]:
        return queue_headers(self.outputs.queue_position)


class RequestHandler:
    """A handler for one request to any API. It has four steps.

        parse        Parse the body (in a thread if it is large).
        build_jobs   Look up the model, load the images and build one job per choice.
        submit       Queue the jobs and wait for the first event.
        respond      Send a stream, or a single body with the complete output.

    The response starts only after the first event, so that earlier errors result in a 4xx or 5xx status even
    if the client requested a stream. Every step can raise ApiError.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._context = context_of(request)
        self.services = services_of(request)
        self.tenant = self._context.tenant
        self.loaded = self._context.loaded

    @property
    def idempotency_key(self) -> str | None:
        return idempotency_key(self._request.headers)

    async def start(self, parse: Callable[[bytes], tuple[T, ChatRequest]]) -> tuple[T, Generation]:
        """Run the first three steps for a chat request. If the client disconnects, the steps are cancelled.

        ``parse`` returns the request both in the format of its API and as a chat request.
        """
        return await cancel_on_disconnect(self._request.receive, self._start(parse))

    async def _start(self, parse: Callable[[bytes], tuple[T, ChatRequest]]) -> tuple[T, Generation]:
        with self.body() as raw:
            request, chat = await self.parse(raw, parse)
            jobs = await self.build_jobs(chat)
        return request, await self.submit(jobs, is_resumable=self.idempotency_key is not None)

    def body(self) -> AbstractContextManager[bytes]:
        """Return the request's body. Its memory is released when the ``with`` block exits."""
        return self._context.body.consume()

    async def parse(self, raw: bytes, parse: Callable[[bytes], T]) -> T:
        """Check the content type and return the result of ``parse`` for the body."""
        self._check_type()
        return await run_parser(self.services, self.tenant, len(raw), partial(parse, raw))

    def _check_type(self) -> None:
        """Raise ApiError (415) unless the body has a JSON type.

        Ollama's clients omit the type, so its routes do not require it.
        """
        if self._request.scope["path"].startswith("/api/"):
            return
        media_type = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not _JSON_TYPE.fullmatch(media_type):
            raise ApiError(
                "unsupported_media_type",
                "The request body must be JSON. Set the header Content-Type: application/json.",
            )

    async def build_jobs(self, chat: ChatRequest, *, field: str = "messages") -> JobSet:
        """Return the jobs of a chat request. ``field`` is the request field that contains the messages."""
        return await build_chat_jobs(
            self.services, chat, tenant=self.tenant, idempotency_key=self.idempotency_key, field=field
        )

    async def submit(
        self, job_set: JobSet, *, is_resumable: bool = False, field: str | Sequence[str] = "messages"
    ) -> Generation:
        """Queue the jobs and wait for the first event of the first job.

        If ``is_resumable`` is true, the jobs continue after a disconnect. ``field`` is the request field that
        errors refer to.
        """
        check_prompt_lengths(job_set.jobs, job_set.model, field)
        jobs = job_set.jobs
        if not is_resumable:
            jobs = [self.services.controller.on_available_shard(job) for job in jobs]
        self._context.job_id = jobs[0].job_id
        outputs = MergedOutputs(self.services.controller, is_resumable=is_resumable, field=field)
        try:
            await outputs.submit(jobs[:1], job_set.pixels)
            with span("first event"):
                index, first = await outputs.next()
            if first.final is not None and first.final.error is not None:
                raise outputs.api_error(index, first.final.error)
            # By now, the worker has processed the first choice's prompt, so the other choices can reuse its
            # KV cache.
            await outputs.submit(jobs[1:], job_set.pixels)
        except BaseException:
            await outputs.aclose()
            raise
        return Generation(jobs[0], job_set.model, outputs, (index, first))

    async def submit_background(self, job_set: JobSet, *, field: str) -> None:
        """Queue the jobs without waiting for an event."""
        check_prompt_lengths(job_set.jobs, job_set.model, field)
        self._context.job_id = job_set.jobs[0].job_id
        outputs = MergedOutputs(self.services.controller)
        await outputs.submit(job_set.jobs, job_set.pixels)
        await outputs.aclose()

    async def respond(
        self,
        generation: Generation,
        serializer: Serializer,
        *,
        is_stream: bool,
        stream_format: StreamFormat = SSE,
    ) -> Response:
        """Return the response, which closes the outputs when it ends.

        Raises ApiError or ClientDisconnected.
        """
        if is_stream:
            stream = self._stream(
                generation.outputs,
                generation.first,
                serializer,
                self._choice_metrics(generation),
                stream_format=stream_format,
            )
            stream.headers.update(generation.queue_headers)
            return stream
        choices = await cancel_on_disconnect(self._request.receive, self.collect(generation))
        return await self._complete(serializer, choices, generation.queue_headers)

    async def _complete(
        self,
        serializer: Serializer,
        choices: Sequence[CollectedChoice],
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        return await self.encoded(num_event_bytes(choices), partial(serializer.to_response, choices), headers)

    async def encoded(
        self, num_bytes: int, build: Callable[[], ResponseModel], headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return a response whose body has about this many bytes. A large one is built in a thread.

        The body counts as loaded data until it has been sent. Raises ApiError (429, 503).
        """
        body = await run_encoder(self.services, self.tenant, num_bytes, build)
        self.loaded.count(len(body))
        return EncodedResponse(body, headers=headers)

    async def collect(self, generation: Generation) -> list[CollectedChoice]:
        """Return the complete output of every choice and close the outputs."""
        try:
            return await collect(generation.outputs, generation.first, self._choice_metrics(generation))
        finally:
            await generation.outputs.aclose()

    async def snapshot(self, job_id: str, *, has_events: bool = True) -> JobSnapshot:
        """Return the current state of a stored job. Raises ApiError (404) if this tenant has no such job."""
        self._context.job_id = job_id
        return await self.services.controller.snapshot(job_id, self.tenant, has_events=has_events)

    async def resume(
        self,
        outline: Job,
        serializer: Serializer,
        *,
        is_stream: bool,
        start: int = 0,
        field: str = "messages",
    ) -> Response:
        """Return the complete response of a stored job, or a stream that skips its first ``start`` tokens.

        Any client that is already reading the job is disconnected, except by a HEAD request. Metrics are not
        recorded again.
        """
        if self._context.is_head:
            response = Response(headers=SSE_HEADERS if is_stream else {"content-type": "application/json"})
            del response.headers["content-length"]
            return response
        outputs = MergedOutputs(self.services.controller, field=field)
        await outputs.resume(outline, timeout_s=self.services.settings.request_timeout_s)
        if is_stream:
            return self._stream(outputs, None, serializer, [NoMetrics()], start=start)
        try:
            collected = collect(outputs, None, [NoMetrics()])
            choices = await cancel_on_disconnect(self._request.receive, collected)
        finally:
            await outputs.aclose()
        return await self._complete(serializer, choices)

    async def delete(self, job_id: str) -> None:
        """Cancel and delete a stored job. Raises ApiError (404) if this tenant has no such job."""
        if not await self.services.controller.delete(job_id, self.tenant):
            raise response_not_found()

    def _choice_metrics(self, generation: Generation) -> list[ChoiceMetrics]:
        return [
            ChoiceMetrics(self.services.metrics, generation.model.name, arrived_at=self._context.arrived_at)
            for _ in range(len(generation.outputs))
        ]

    def _stream(
        self,
        outputs: MergedOutputs,
        first: tuple[int, Event] | None,
        serializer: Serializer,
        observers: Sequence[EventObserver],
        *,
        start: int = 0,
        stream_format: StreamFormat = SSE,
    ) -> EventStream:
        settings = self.services.settings
        return EventStream(
            outputs,
            first,
            serializer,
            observers,
            keepalive_s=settings.keepalive_s,
            start=start,
            stream_format=stream_format,
        )


async def run_parser(services: Services, tenant: str, num_bytes: int, call: Callable[[], T]) -> T:
    """Call a function that parses or encodes this many bytes. If they are many, it runs in a thread.

    Raises ApiError (429, 503) if the tenant has too many requests that wait for a thread, or the wait takes
    too long.
    """
    if num_bytes <= _LARGE_BODY_BYTES:
        return call()
    return await services.threads.run(tenant, call)


async def run_encoder(
    services: Services, tenant: str, num_bytes: int, build: Callable[[], ResponseModel]
) -> bytes:
    """Return the JSON text of a model. If it has about this many bytes and they are many, use a thread.

    Raises ApiError (429, 503).
    """
    return await run_parser(services, tenant, num_bytes, lambda: encode_in_pieces(build()))


async def build_chat_jobs(
    services: Services,
    chat: ChatRequest,
    *,
    tenant: str,
    idempotency_key: str | None,
    field: str = "messages",
) -> JobSet:
    """Check the size of a chat request, look up its model, load its images and return its jobs.

    If ``idempotency_key`` is set, every controller builds the same jobs for the same request. ``field`` is
    the request field that contains the messages. Raises ApiError.
    """
    settings = services.settings
    max_text_bytes = settings.max_text_kb * 1024
    _check_size(chat, max_text_bytes=max_text_bytes, max_images=settings.max_images, field=field)
    model = await services.registry.find(chat.model)
    owner = image_owner(_PUBLIC_SCOPE if chat.cache_scope == "public" else tenant, chat.cache_salt)
    sources = image_sources(chat.messages)
    with span("images", num_images=len(sources)) if sources else nullcontext():
        images = [
            await load_image(services, source, model, tenant=tenant, owner=owner, num_images=len(sources))
            for source in sources
        ]
    ttl_s = settings.request_timeout_s
    jobs = to_jobs(
        chat,
        images,
        model,
        tenant=tenant,
        priority=services.api_keys.priority(tenant, chat.requested_priority),
        ttl_s=ttl_s,
        idempotency_key=idempotency_key,
    )
    return JobSet(model, jobs, {image.ref.digest: image.pixels for image in images})


def image_owner(scope: str, salt: str | None) -> str:
    """Return the owner of the images of requests with this salt.

    Images with the same pixels but different owners have different digests, so no cache shares them.
    """
    return f"{scope}\0{salt}" if salt else scope


def _check_size(chat: ChatRequest, *, max_text_bytes: int, max_images: int, field: str) -> None:
    """Raise ApiError if the request exceeds this server's limits. The worker checks the context length."""
    num_bytes, num_images = len(tools_text(chat).encode()), 0
    for message in chat.messages:
        for part in message.parts:
            num_images += isinstance(part, ImagePart | FilePart)
            num_bytes += len(part.encode()) if isinstance(part, str) else 0
        if isinstance(message, AssistantMessage):
            num_bytes += sum(len(call.function.arguments.encode()) for call in message.calls)
    check_num_images(num_images, max_images, param=field)
    check_text(num_bytes, max_text_bytes, param=field)


async def load_image(
    services: Services,
    source: ImageSource,
    model: ServedModel,
    *,
    tenant: str,
    owner: str,
    num_images: int = 1,
) -> PreprocessedImage:
    """Load, decode and preprocess an image for the model. Raises an ApiError that names the image's field.

    ``tenant`` owns the stored files, and ``owner`` is the scope in which the decoded image is cached.
    ``num_images`` is the number of images in the prompt.
    """
    spec = choose_spec(model.image_spec, is_low_detail=source.is_low_detail, num_images=num_images)
    loader = services.image_loader
    try:
        if not source.file_id:
            return await loader.load(source.url, spec, tenant=tenant, owner=owner)
        with services.loaded_data.hold(tenant) as loaded:
            file = await _read_file(services, source, tenant, loaded)
            return await loader.load_file(file, spec, tenant=tenant, owner=owner)
    except ImageError as error:
        raise ApiError(error.code, f"{source.param}: {error.message}", param=source.param) from error


async def _read_file(services: Services, source: ImageSource, tenant: str, loaded: LoadedBytes) -> bytes:
    """Return the contents of a stored image file. Raises ApiError (404, 429, 503) and ImageError."""
    try:
        file = await services.files.find(source.file_id, tenant=tenant)
        if file is not None:
            services.image_loader.check_size(file.size)
            await loaded.reserve(_MEMORY_PER_FILE_BYTE * file.size)
            if (data := await services.files.read(file, tenant=tenant)) is not None:
                return data
    except QueueUnavailable as error:
        raise from_store_error(error) from error
    param, file_id = source.param, source.file_id[:64]
    raise ApiError(
        "file_not_found",
        f"{param}: the file {file_id!a} does not exist, belongs to a different API key, or has expired. "
        "Upload it again.",
        param=param,
    )


def queue_headers(position: QueuePosition | None) -> dict[str, str]:
    """Return headers that describe the queue at the time the request arrived.

    docs/how-it-works/fault-tolerance.md lists them.
    """
    if position is None:
        return {}
    headers = {"x-queue-position": str(position.num_ahead)}
    return headers if position.wait_s is None else {**headers, "x-queue-estimate-s": f"{position.wait_s:.3f}"}
