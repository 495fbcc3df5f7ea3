"""From a validated request to the jobs that answer it, one for each choice. Pure functions."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import msgspec
from llava_wire import ImageRef, Job, Message, SamplingParams

from llava_server.images.intake import FittedPicture
from llava_server.registry import ServedModel
from llava_server.schemas import ChatRequest, ImagePart

__all__ = ["choice_seed", "image_urls", "job_id_of", "new_job_id", "to_jobs"]

_CHARS_PER_TOKEN = 3  # an estimate for fair queueing, no limit
_EXPECTED_ANSWER_TOKENS = 256
_SEED_BITS = 63


def new_job_id() -> str:
    """128 random bits: whoever does not have the id cannot guess it."""
    return f"chatcmpl-{secrets.token_hex(16)}"


def job_id_of(tenant: str, idempotency_key: str, index: int) -> str:
    """The same for the same key of a tenant, on every controller: that is how a repeated request is known."""
    return f"chatcmpl-{_digest(tenant, idempotency_key, str(index)).hex()[:32]}"


def image_urls(request: ChatRequest) -> list[tuple[str, str]]:
    """(path of the field, URL) of every picture, in reading order."""
    return [
        (f"messages[{m}].content[{p}].image_url.url", part.image_url.url)
        for m, message in enumerate(request.messages)
        if not isinstance(message.content, str)
        for p, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def to_jobs(
    request: ChatRequest,
    pictures: Sequence[FittedPicture],
    model: ServedModel,
    *,
    tenant: str,
    ttl_s: float,
    idempotency_key: str | None = None,
) -> list[Job]:
    """A job for each choice; ``pictures`` in the order of ``image_urls``. With an ``idempotency_key`` the
    same request makes the same jobs, whoever translates it."""
    messages = _messages(request, [picture.ref for picture in pictures])
    sampling = _sampling(request, model)
    if idempotency_key is not None and request.seed is None:
        seed = int.from_bytes(_digest(tenant, idempotency_key, "seed")[:8], "big") >> (64 - _SEED_BITS)
        sampling = msgspec.structs.replace(sampling, seed=seed)

    def job_id(index: int) -> str:
        return new_job_id() if idempotency_key is None else job_id_of(tenant, idempotency_key, index)

    first = Job(
        job_id=job_id(0),
        model=model.name,
        tenant=tenant,
        messages=messages,
        sampling=sampling,
        cost=_cost(messages, sampling, model),
        ttl_s=ttl_s,
        cache_scope=request.cache_scope or "tenant",
    )
    others = (
        msgspec.structs.replace(
            first,
            job_id=job_id(index),
            sampling=msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, index)),
        )
        for index in range(1, request.num_choices)
    )
    return [first, *others]


def choice_seed(seed: int, index: int) -> int:
    """The request's seed for the first choice, so that it is the answer to a request without ``n``."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _messages(request: ChatRequest, refs: Sequence[ImageRef]) -> tuple[Message, ...]:
    remaining = iter(refs)
    messages = []
    for message in request.messages:
        content = message.content
        parts: tuple[str | ImageRef, ...] = (
            (content,)
            if isinstance(content, str)
            else tuple(next(remaining) if isinstance(part, ImagePart) else part.text for part in content)
        )
        role = "system" if message.role == "developer" else message.role
        messages.append(Message(role, parts))
    return tuple(messages)


def _sampling(request: ChatRequest, model: ServedModel) -> SamplingParams:
    limit = request.answer_limit
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
        grammar=request.grammar,
    )


def _cost(messages: Sequence[Message], sampling: SamplingParams, model: ServedModel) -> float:
    """Tokens this job will probably take, which is what fair sharing counts."""
    parts = [part for message in messages for part in message.parts]
    num_chars = sum(len(part) for part in parts if isinstance(part, str))
    num_tiles = sum(part.num_tiles for part in parts if isinstance(part, ImageRef))
    answer = min(sampling.max_tokens or _EXPECTED_ANSWER_TOKENS, model.context_length)
    return num_chars / _CHARS_PER_TOKEN + num_tiles * model.image_spec.tokens_per_tile + answer
