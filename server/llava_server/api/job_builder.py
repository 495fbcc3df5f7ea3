"""Build jobs: their ids, their seeds and their estimated cost. Pure functions."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import msgspec
from llava_wire.messages.job import ImageRef, Job, Message, Task
from llava_wire.messages.sampling_params import SamplingParams

from llava_server.api.fields.sampling import SEED_BITS
from llava_server.worker_registry import ServedModel

__all__ = ["choice_id", "choice_seed", "digest", "estimate_cost", "new_job_id", "raw_job", "with_choices"]

# Estimates for fair queueing, no limits.
_CHARS_PER_TOKEN = 3
_EXPECTED_OUTPUT_TOKENS = 256
_JOB_ID_PREFIXES: dict[Task, str] = {"answer": "cmpl", "embed": "embd"}


def new_job_id(prefix: str = "chatcmpl") -> str:
    """Return a random id of 128 bits, which cannot be guessed."""
    return f"{prefix}-{secrets.token_hex(16)}"


def raw_job(
    prompt: str | ImageRef | Sequence[int],
    model: ServedModel,
    *,
    tenant: str,
    ttl_s: float,
    sampling: SamplingParams | None = None,
    task: Task = "answer",
) -> Job:
    """Return a job whose prompt is used without the chat template; an image to be embedded is all of it.

    Jobs that generate nothing need no ``sampling``.
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
    """Return the job, and a copy of it with another seed for each further choice."""
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
    """Return the job id of a choice, derived from the first one's: a repeated request has the same ids."""
    return f"{first.partition('-')[0]}-{digest(first, str(index)).hex()[:32]}"


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of a choice. The first one has the request's, so that its output is that of ``n`` 1."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def digest(*parts: str) -> bytes:
    """Return a hash of the parts."""
    return hashlib.sha256("\0".join(parts).encode()).digest()


def estimate_cost(messages: Sequence[Message], sampling: SamplingParams, model: ServedModel) -> float:
    """Estimate the tokens of a job, prompt and output, for fair queueing."""
    parts = [part for message in messages for part in message.parts]
    num_chars = sum(len(part) for part in parts if isinstance(part, str))
    num_tiles = sum(part.num_tiles for part in parts if isinstance(part, ImageRef))
    max_tokens = _EXPECTED_OUTPUT_TOKENS if sampling.max_tokens is None else sampling.max_tokens
    num_output_tokens = min(max_tokens, model.context_length)
    num_image_tokens = num_tiles * model.image_spec.tokens_per_tile
    return num_chars / _CHARS_PER_TOKEN + num_image_tokens + num_output_tokens
