"""Limits of the queue and of one tenant, and the errors that a submit over them raises."""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.errors import AlreadySubmitted, DuplicateJob, QueueFull, TenantOverLimit, WireError
from llava_wire.messages.job import Job

__all__ = ["DEFAULT_TENANT_LIMITS", "QueueLimits", "TenantLimits", "refusal"]

_UNKNOWN_S = 5.0  # nothing was done lately, so there is no rate to go by
_SOONEST_S, _LATEST_S = 1.0, 60.0


@dataclass(frozen=True)
class TenantLimits:
    """``weight`` 3 gets three times the tokens of ``weight`` 1 while both have work waiting. ``max_jobs``
    counts waiting and running jobs, ``max_cost`` their tokens together; None: as the controller is set."""

    weight: float = 1.0
    max_jobs: int | None = None
    max_cost: float | None = None


DEFAULT_TENANT_LIMITS = TenantLimits()


@dataclass(frozen=True)
class QueueLimits:
    """``queued`` are by model and count what waits, ``tenant`` what one has waiting and running; a cost
    is in tokens. ``pixel_bytes`` are everybody's."""

    queued_jobs: int
    queued_cost: float
    tenant_jobs: int
    tenant_cost: float
    pixel_bytes: int

    def under(self, terms: TenantLimits) -> QueueLimits:
        """The limits for a tenant with terms of its own."""
        return QueueLimits(
            self.queued_jobs,
            self.queued_cost,
            self.tenant_jobs if terms.max_jobs is None else terms.max_jobs,
            self.tenant_cost if terms.max_cost is None else terms.max_cost,
            self.pixel_bytes,
        )


def refusal(job: Job, limits: QueueLimits, answer: list[bytes | int]) -> WireError:
    """The error for what ``submit`` answered when it was not "ok"."""
    kind = answer[0].decode() if isinstance(answer[0], bytes) else ""
    if kind == "duplicate":
        return DuplicateJob(f"job {job.job_id} is known with other contents")
    if kind == "known":
        return AlreadySubmitted(f"job {job.job_id} has been submitted already")
    amount, wait_s = int(answer[1]), _wait_s(int(answer[2]))
    if kind == "tenant":
        return TenantOverLimit(
            f"{amount} requests of this key are waiting or running; the limit is {limits.tenant_jobs}: "
            "wait for one to end",
            retry_after_s=wait_s,
        )
    if kind == "tenant_cost":
        return TenantOverLimit(
            f"the requests of this key that are waiting or running take {amount} tokens, this one "
            f"{job.cost:.0f} more; the limit is {limits.tenant_cost:.0f}: wait for one to end",
            retry_after_s=wait_s,
        )
    if kind == "bytes":
        message = f"pictures of other requests take {amount} bytes of {limits.pixel_bytes}: try later"
    elif kind == "heavy":
        message = (
            f"what waits for {job.model} takes {amount} tokens, this request {job.cost:.0f} more; "
            f"the limit is {limits.queued_cost:.0f}: try later"
        )
    else:
        message = f"{amount} requests wait for {job.model}; the limit is {limits.queued_jobs}: try later"
    return QueueFull(message, retry_after_s=wait_s)


def _wait_s(milliseconds: int) -> float:
    return min(max(milliseconds / 1000, _SOONEST_S), _LATEST_S) if milliseconds else _UNKNOWN_S
