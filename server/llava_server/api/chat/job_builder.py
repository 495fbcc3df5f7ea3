"""Pure functions that convert a validated request to one job per choice."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from llava_wire.messages.job import ImageRef, Job, Message, Role, Task
from llava_wire.messages.sampling_params import Grammar, SamplingParams

from llava_server.api.chat.request import (
    AssistantMessage,
    ChatRequest,
    FilePart,
    GenerationRequest,
    ImagePart,
    TextPart,
    ToolMessage,
)
from llava_server.api.fields.messages import ChatMessage
from llava_server.api.tools.prompt import calls_text, result_text, tools_text
from llava_server.images.loader import PreprocessedImage
from llava_server.worker_registry import ServedModel

__all__ = [
    "ImageSource",
    "choice_id",
    "choice_seed",
    "estimate_cost",
    "image_sources",
    "job_id_for_key",
    "new_job_id",
    "raw_job",
    "seed_for_key",
    "to_jobs",
    "to_sampling_params",
    "with_choices",
    "with_keyed_ids",
]

# Estimates used for fair queueing, not limits.
_CHARS_PER_TOKEN = 3
_EXPECTED_OUTPUT_TOKENS = 256
_SEED_BITS = 63
_JOB_ID_PREFIXES: dict[Task, str] = {"answer": "cmpl", "embed": "embd"}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "user",
    "assistant": "assistant",
}


def new_job_id(prefix: str = "chatcmpl") -> str:
    """Return an unpredictable 128-bit ID."""
    return f"{prefix}-{secrets.token_hex(16)}"


def with_keyed_ids(jobs: Sequence[Job], idempotency_key: str) -> list[Job]:
    """Return the jobs with IDs derived from an idempotency key. Every controller returns the same IDs."""
    return [
        msgspec.structs.replace(
            job,
            job_id=f"{job.job_id.partition('-')[0]}-"
            f"{_digest(job.tenant, idempotency_key, str(index)).hex()[:32]}",
        )
        for index, job in enumerate(jobs)
    ]


def seed_for_key(tenant: str, idempotency_key: str) -> int:
    """Return the seed of a request that does not set one. Every controller returns the same seed."""
    return int.from_bytes(_digest(tenant, idempotency_key, "seed")[:8], "big") >> (64 - _SEED_BITS)


def job_id_for_key(tenant: str, idempotency_key: str) -> str:
    """Return the job ID for an idempotency key. Every controller returns the same ID."""
    return f"chatcmpl-{_digest(tenant, idempotency_key).hex()[:32]}"


class ImageSource(NamedTuple):
    """An image in a request: the field that contains it, its URL, and whether to encode it in low detail.

    The image is read from a stored file if ``file_id`` is not empty.
    """

    param: str
    url: str
    is_low_detail: bool
    file_id: str = ""


def image_sources(request: ChatRequest) -> list[ImageSource]:
    """Return the images of a chat request in reading order."""
    return [
        _image_source(part, f"messages[{m}].content[{p}]")
        for m, message in enumerate(request.messages)
        if message.content is not None and not isinstance(message.content, str)
        for p, part in enumerate(message.content)
        if isinstance(part, ImagePart | FilePart)
    ]


def _image_source(part: ImagePart | FilePart, param: str) -> ImageSource:
    if isinstance(part, ImagePart):
        return ImageSource(f"{param}.image_url.url", part.image_url.url, part.image_url.detail == "low")
    file, is_low_detail = part.file, part.file.detail == "low"
    if file.file_id is not None:
        return ImageSource(f"{param}.file.file_id", "", is_low_detail, file.file_id)
    return ImageSource(f"{param}.file.file_data", file.file_data or "", is_low_detail)


def to_jobs(
    request: ChatRequest,
    images: Sequence[PreprocessedImage],
    model: ServedModel,
    *,
    tenant: str,
    ttl_s: float,
    idempotency_key: str | None = None,
) -> list[Job]:
    """Return one job per choice. ``images`` must be in the same order as ``image_sources``.

    If ``idempotency_key`` is set, every controller builds the same jobs for the same request.
    """
    messages = _messages(request, [image.ref for image in images])
    sampling = to_sampling_params(request, model, request.grammar)
    if idempotency_key is not None and request.seed is None:
        sampling = msgspec.structs.replace(sampling, seed=seed_for_key(tenant, idempotency_key))
    first = Job(
        job_id=new_job_id() if idempotency_key is None else job_id_for_key(tenant, idempotency_key),
        model=model.name,
        tenant=tenant,
        messages=messages,
        sampling=sampling,
        cost=estimate_cost(messages, sampling, model),
        ttl_s=ttl_s,
        priority=request.job_priority,
        cache_scope=request.cache_scope or "tenant",
        form="continued" if request.continue_final_message else "chat",
    )
    return with_choices(first, request.num_choices)


def raw_job(
    prompt: str | ImageRef | Sequence[int],
    model: ServedModel,
    *,
    tenant: str,
    ttl_s: float,
    sampling: SamplingParams | None = None,
    task: Task = "answer",
) -> Job:
    """Return a job whose prompt (text, token IDs, or an image to embed) bypasses the chat template.

    ``sampling`` can be omitted for jobs that generate no output.
    """
    sampling = sampling or SamplingParams(seed=0, max_tokens=1)
    messages = (Message("user", (prompt,)),) if isinstance(prompt, str | ImageRef) else ()
    prompt_ids = () if isinstance(prompt, str | ImageRef) else tuple(prompt)
    cost = estimate_cost(messages, sampling, model) + len(prompt_ids)
    return Job(
        job_id=new_job_id(_JOB_ID_PREFIXES.get(task, "tok")),
        model=model.name,
        tenant=tenant,
        messages=messages,
        sampling=sampling,
        cost=cost,
        ttl_s=ttl_s,
        form="raw",
        prompt_ids=prompt_ids,
        task=task,
    )


def with_choices(first: Job, num_choices: int) -> list[Job]:
    """Return the first job plus one copy, with its own ID and seed, for each additional choice."""
    others = (
        msgspec.structs.replace(
            first,
            job_id=choice_id(first.job_id, index),
            sampling=msgspec.structs.replace(first.sampling, seed=choice_seed(first.sampling.seed, index)),
        )
        for index in range(1, num_choices)
    )
    return [first, *others]


def choice_id(first: str, index: int) -> str:
    """Return the job ID of a choice, derived from the first job's ID so that retries use the same IDs."""
    return f"{first.partition('-')[0]}-{_digest(first, str(index)).hex()[:32]}"


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of a choice. The first choice uses the request's seed, regardless of ``n``."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _messages(request: ChatRequest, refs: Sequence[ImageRef]) -> tuple[Message, ...]:
    """Return the messages, converted to the roles that the model supports.

    Each tool result becomes a user message. If another tool result or user message immediately follows, it is
    merged into the same message. Tool descriptions are added to the system message.
    """
    remaining = iter(refs)
    messages: list[Message] = []
    is_after_result = False
    for message in request.messages:
        is_result = isinstance(message, ToolMessage)
        role: Role = _ROLES[message.role]
        turn = Message(role, tuple(_parts(message, remaining)))
        if is_after_result and role == "user":
            turn = Message(role, messages.pop().parts + turn.parts)
        messages.append(turn)
        is_after_result = is_result
    tools = tools_text(request)
    if tools and messages[0].role == "system":
        messages[0] = Message("system", (*messages[0].parts, tools))
    elif tools:
        messages.insert(0, Message("system", (tools,)))
    return tuple(messages)


def _parts(message: ChatMessage, remaining: Iterator[ImageRef]) -> Iterator[str | ImageRef]:
    if isinstance(message, ToolMessage):
        content = message.content
        texts = (
            [content] if isinstance(content, str) else [p.text for p in content if isinstance(p, TextPart)]
        )
        yield result_text("\n".join(texts))
    elif isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content or ():
            yield next(remaining) if isinstance(part, ImagePart | FilePart) else part.text
    if isinstance(message, AssistantMessage) and message.tool_calls:
        yield calls_text(message.tool_calls)


def to_sampling_params(
    request: GenerationRequest, model: ServedModel, grammar: Grammar | None
) -> SamplingParams:
    """Return the request's sampling parameters, with a random seed if the request does not set one."""
    limit = request.max_output_tokens
    return SamplingParams(
        seed=secrets.randbits(_SEED_BITS) if request.seed is None else request.seed,
        max_tokens=None if limit is None else min(limit, model.context_length),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        stop=request.stop_strings,
        ignore_eos=bool(request.ignore_eos),
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple((int(key), bias) for key, bias in (request.logit_bias or {}).items()),
        min_tokens=request.min_tokens or 0,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        num_logprobs=request.num_logprobs,
        grammar=grammar,
    )


def estimate_cost(messages: Sequence[Message], sampling: SamplingParams, model: ServedModel) -> float:
    """Estimate the total number of prompt and output tokens of a job, for fair queueing."""
    parts = [part for message in messages for part in message.parts]
    num_chars = sum(len(part) for part in parts if isinstance(part, str))
    num_tiles = sum(part.num_tiles for part in parts if isinstance(part, ImageRef))
    max_tokens = _EXPECTED_OUTPUT_TOKENS if sampling.max_tokens is None else sampling.max_tokens
    num_output_tokens = min(max_tokens, model.context_length)
    num_image_tokens = num_tiles * model.image_spec.tokens_per_tile
    return num_chars / _CHARS_PER_TOKEN + num_image_tokens + num_output_tokens
