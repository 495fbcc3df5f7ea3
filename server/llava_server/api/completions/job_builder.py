"""Conversion of text completion requests to jobs, with one job for each choice of each prompt."""

from __future__ import annotations

import msgspec
from llava_wire.messages.job import Job

from llava_server.api.chat.job_builder import raw_job, to_sampling_params, with_choices, with_options
from llava_server.api.completions.request import CompletionRequest
from llava_server.worker_registry import ServedModel

__all__ = ["to_completion_jobs"]


def to_completion_jobs(
    request: CompletionRequest, model: ServedModel, *, tenant: str, ttl_s: float
) -> list[Job]:
    """Return one job per choice, ordered by prompt."""
    sampling = to_sampling_params(request, model, request.grammar)
    jobs: list[Job] = []
    for prompt in request.prompts:
        job = raw_job(prompt, model, tenant=tenant, ttl_s=ttl_s, sampling=sampling)
        job = with_options(msgspec.structs.replace(job, is_echoed=bool(request.echo)), request)
        jobs += with_choices(job, request.num_choices)
    return jobs
