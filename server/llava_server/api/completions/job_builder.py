"""Conversion of text completion requests to jobs, with one job for each choice of each prompt."""

from __future__ import annotations

import msgspec
from llava_wire.messages.job import Job

from llava_server.api.chat.job_builder import raw_job, to_sampling_params, with_choices, with_options
from llava_server.api.chat.request_handler import JobSet
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.parse import check_text
from llava_server.lifespan import Services
from llava_server.worker_registry import ServedModel

__all__ = ["build_completion_jobs", "to_completion_jobs"]


async def build_completion_jobs(services: Services, request: CompletionRequest, *, tenant: str) -> JobSet:
    """Check the size of a request, look up its model and return its jobs. Raises ApiError."""
    settings = services.settings
    num_bytes = sum(len(prompt.encode()) for prompt in request.prompts if isinstance(prompt, str))
    check_text(num_bytes, settings.max_text_kb * 1024, param="prompt")
    model = await services.registry.find(request.model)
    priority = services.api_keys.priority(tenant, request.requested_priority)
    ttl_s = settings.request_timeout_s
    jobs = to_completion_jobs(request, model, tenant=tenant, priority=priority, ttl_s=ttl_s)
    return JobSet(model, jobs, {})


def to_completion_jobs(
    request: CompletionRequest, model: ServedModel, *, tenant: str, priority: int, ttl_s: float
) -> list[Job]:
    """Return one job per choice, ordered by prompt."""
    sampling = to_sampling_params(request, model, request.grammar)
    jobs: list[Job] = []
    for prompt in request.prompts:
        job = raw_job(prompt, model, tenant=tenant, priority=priority, ttl_s=ttl_s, sampling=sampling)
        job = with_options(msgspec.structs.replace(job, is_echoed=bool(request.echo)), request)
        jobs += with_choices(job, request.num_choices)
    return jobs
