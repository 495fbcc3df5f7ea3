"""Pure functions that convert a validated request to one job per choice."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence

import msgspec
from llava_wire.messages.job import ImageRef, Job, Message, Task
from llava_wire.messages.sampling_params import Grammar, SamplingParams

from llava_server.api.chat.conversation import to_conversation
from llava_server.api.chat.request import ChatRequest, GenerationRequest
from llava_server.api.tools.prompt import tools_text
from llava_server.images.loader import PreprocessedImage
from llava_server.worker_registry import ServedModel

__all__ = [
    "choice_id",
    "choice_seed",
    "estimate_cost",
    "job_id_for_key",
    "new_job_id",
    "raw_job",
    "seed_for_key",
    "to_jobs",
    "to_sampling_params",
    "with_choices",
    "with_options",
    "with_keyed_ids",
]

# Estimates used for fair queueing, not limits.
_CHARS_PER_TOKEN = 3
_EXPECTED_OUTPUT_TOKENS = 256
_SEED_BITS = 63
_JOB_ID_PREFIXES: dict[Task, str] = {"answer": "cmpl", "embed": "embd"}


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


def to_jobs(
    request: ChatRequest,
    images: Sequence[PreprocessedImage],
    model: ServedModel,
    *,
    tenant: str,
    priority: int,
    ttl_s: float,
    idempotency_key: str | None = None,
) -> list[Job]:
    """Return one job per choice. ``images`` must be in the same order as ``image_sources`` returns them.

    If ``idempotency_key`` is set, every controller builds the same jobs for the same request.
    """
    messages = to_conversation(
        request.messages,
        [image.ref for image in images],
        tools=tools_text(request),
        is_continued=request.is_continued,
    )
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
        priority=priority,
        form="continued" if request.is_continued else "chat",
        context_length=model.context_length,
    )
    first, *others = with_choices(with_options(first, request), request.num_choices)
    return [first, *map(_without_prompt_tokens, others)]


def _without_prompt_tokens(job: Job) -> Job:
    """Return a job that does not return its prompt, which the response of the first choice contains."""
    sampling = msgspec.structs.replace(job.sampling, num_prompt_logprobs=None)
    return msgspec.structs.replace(job, sampling=sampling, returns_token_ids=False)


def raw_job(
    prompt: str | ImageRef | Sequence[int],
    model: ServedModel,
    *,
    tenant: str,
    priority: int,
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
        priority=priority,
        form="raw",
        prompt_ids=prompt_ids,
        task=task,
        context_length=model.context_length,
    )


def with_options(job: Job, request: GenerationRequest) -> Job:
    """Return the job with the request's options for caching, truncation and the response."""
    job = msgspec.structs.replace(
        job,
        cache_scope=request.cache_scope or "tenant",
        cache_salt=request.cache_salt or "",
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        returns_token_ids=bool(request.return_token_ids),
        names_tokens_by_id=bool(request.return_tokens_as_token_ids),
    )
    return msgspec.structs.replace(job, version=job.required_version)


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
        repetition_penalty=request.repetition,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple((int(key), bias) for key, bias in (request.logit_bias or {}).items()),
        min_tokens=request.min_tokens or 0,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        num_logprobs=request.num_logprobs,
        grammar=grammar,
        allowed_token_ids=tuple(request.allowed_token_ids or ()),
        bad_words=tuple(request.bad_words or ()),
        typical_p=1.0 if request.typical_p is None else request.typical_p,
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        num_prompt_logprobs=request.prompt_logprobs,
    )


def estimate_cost(messages: Sequence[Message], sampling: SamplingParams, model: ServedModel) -> float:
    """Estimate the total number of prompt and output tokens of a job, for fair queueing."""
    parts = [part for message in messages for part in message.parts]
    num_chars = sum(len(part) for part in parts if isinstance(part, str))
    max_tokens = _EXPECTED_OUTPUT_TOKENS if sampling.max_tokens is None else sampling.max_tokens
    num_output_tokens = min(max_tokens, model.context_length)
    spec = model.image_spec
    num_image_tokens = sum(
        min(part.num_tiles * spec.tokens_per_tile, spec.max_tokens or math.inf)
        for part in parts
        if isinstance(part, ImageRef)
    )
    return num_chars / _CHARS_PER_TOKEN + num_image_tokens + num_output_tokens
