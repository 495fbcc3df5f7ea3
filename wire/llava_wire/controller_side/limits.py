"""Limits on the queue and on each tenant, and the errors for jobs that exceed them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llava_wire.errors import AlreadySubmitted, DuplicateJob, QueueFull, TenantOverLimit, WireError
from llava_wire.messages.job import Job

__all__ = ["DEFAULT_TENANT_LIMITS", "SHARD_MARGIN", "QueueLimits", "TenantLimits", "submit_error"]

SHARD_MARGIN = 1.25
_DEFAULT_RETRY_S = 5.0  # used if the service rate is unknown because no job finished in the last minute
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


@dataclass(frozen=True)
class TenantLimits:
    """The limits of one tenant. None selects the default limit.

    ``max_jobs`` limits the number of waiting and running jobs, and ``max_cost`` limits their total cost in
    tokens. Among tenants with waiting jobs, a tenant with ``weight`` 3 is served three times as many tokens
    as a tenant with ``weight`` 1.
    """

    weight: float = 1.0
    max_jobs: int | None = None
    max_cost: float | None = None


DEFAULT_TENANT_LIMITS = TenantLimits()


@dataclass(frozen=True)
class QueueLimits:
    """The limits of the queue. Costs are in tokens.

    ``queued_*`` limits the waiting jobs per model, and ``tenant_*`` limits the waiting and running jobs per
    tenant. ``pixel_bytes`` limits the total size of all stored images, and ``job_bytes`` the total size of
    all jobs with their logs. Each tenant can use at most as many bytes of these two as are free.
    """

    queued_jobs: int
    queued_cost: float
    tenant_jobs: int
    tenant_cost: float
    pixel_bytes: int
    job_bytes: int

    def per_shard(self, num_shards: int) -> QueueLimits:
        """Return the limits of each shard of a queue.

        Jobs are distributed at random, so each shard gets ``SHARD_MARGIN`` times its share. The limits of the
        whole queue are therefore exceeded by at most this factor, or by less than one job per shard.
        """
        if num_shards == 1:
            return self
        share = SHARD_MARGIN / num_shards
        return QueueLimits(
            math.ceil(self.queued_jobs * share),
            self.queued_cost * share,
            math.ceil(self.tenant_jobs * share),
            self.tenant_cost * share,
            math.ceil(self.pixel_bytes * share),
            math.ceil(self.job_bytes * share),
        )

    def for_tenant(self, limits: TenantLimits) -> QueueLimits:
        """Return a copy in which the limits of one tenant override the ``tenant_*`` limits."""
        return QueueLimits(
            self.queued_jobs,
            self.queued_cost,
            self.tenant_jobs if limits.max_jobs is None else limits.max_jobs,
            self.tenant_cost if limits.max_cost is None else limits.max_cost,
            self.pixel_bytes,
            self.job_bytes,
        )


def submit_error(job: Job, limits: QueueLimits, reply: list[bytes | int]) -> WireError:
    """Return the error that corresponds to a reply other than "ok" from the ``submit`` script."""
    kind = reply[0].decode() if isinstance(reply[0], bytes) else ""
    if kind == "duplicate":
        return DuplicateJob(f"Job {job.job_id} already exists with different contents.")
    if kind == "known":
        return AlreadySubmitted(f"Job {job.job_id} has already been submitted.")
    num_used, retry_after_s = int(reply[1]), _retry_after_s(int(reply[2]))
    if kind == "tenant":
        return TenantOverLimit(
            f"This API key has {num_used} waiting or running requests; the limit is {limits.tenant_jobs}. "
            "Wait for one to finish.",
            retry_after_s=retry_after_s,
        )
    if kind == "tenant_cost":
        return TenantOverLimit(
            f"The waiting and running requests of this API key use {num_used} tokens, and this request needs "
            f"{job.cost:.0f}; the limit is {limits.tenant_cost:.0f} tokens. Wait for a request to finish.",
            retry_after_s=retry_after_s,
        )
    if kind == "bytes":
        return _bytes_error(num_used, reply[3:], retry_after_s)
    if kind == "heavy":
        return QueueFull(
            f"The requests waiting for model {job.model} use {num_used} tokens, and this request needs "
            f"{job.cost:.0f}; the limit is {limits.queued_cost:.0f} tokens. Retry later.",
            retry_after_s=retry_after_s,
        )
    return QueueFull(
        f"{num_used} requests are waiting for model {job.model}; the limit is {limits.queued_jobs}. "
        "Retry later.",
        retry_after_s=retry_after_s,
    )


def _bytes_error(num_used: int, details: list[bytes | int], retry_after_s: float) -> WireError:
    """Return the error for a job without room in Redis.

    ``details`` are the kind of data, the scope of the exceeded limit, the bytes needed and the limit.
    """
    kind, scope = details[:2]
    num_needed, limit = map(int, details[2:])
    if kind == b"pixel":
        data, remedy = "The images", "send fewer or smaller images"
    else:
        data, remedy = "The prompts and outputs", "use a shorter prompt or a lower max_tokens"
    if scope == b"tenant":
        return TenantOverLimit(
            f"{data} of this API key's recent requests use {num_used} bytes, and this request needs "
            f"{num_needed}; the limit is {limit} bytes at the moment. Wait for requests to finish, or "
            f"{remedy}.",
            retry_after_s=retry_after_s,
        )
    return QueueFull(
        f"{data} of all requests use {num_used} of {limit} bytes, and this request needs {num_needed}. "
        f"Retry later, or {remedy}.",
        retry_after_s=retry_after_s,
    )


def _retry_after_s(milliseconds: int) -> float:
    """Convert an estimated delay to seconds and clamp it. 0 means that no estimate is available."""
    if not milliseconds:
        return _DEFAULT_RETRY_S
    return min(max(milliseconds / 1000, _MIN_RETRY_S), _MAX_RETRY_S)
