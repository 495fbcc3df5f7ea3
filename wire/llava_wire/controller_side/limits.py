"""Limits of the queue and of one tenant, and the errors that a submit over them raises."""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.errors import AlreadySubmitted, DuplicateJob, QueueFull, TenantOverLimit, WireError
from llava_wire.messages.job import Job

__all__ = ["DEFAULT_TENANT_LIMITS", "QueueLimits", "TenantLimits", "submit_error"]

_DEFAULT_RETRY_S = 5.0  # no job ended lately, so there is no rate to estimate from
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


@dataclass(frozen=True)
class TenantLimits:
    """``weight`` 3 gets three times the tokens of ``weight`` 1 while both have work waiting. ``max_jobs``
    limits the waiting and running jobs, ``max_cost`` the sum of their tokens; None: as for any tenant."""

    weight: float = 1.0
    max_jobs: int | None = None
    max_cost: float | None = None


DEFAULT_TENANT_LIMITS = TenantLimits()


@dataclass(frozen=True)
class QueueLimits:
    """``queued`` limits count waiting jobs per model, ``tenant`` limits the waiting and running jobs of one
    tenant; a cost is in tokens. ``pixel_bytes`` is for all stored images together."""

    queued_jobs: int
    queued_cost: float
    tenant_jobs: int
    tenant_cost: float
    pixel_bytes: int

    def for_tenant(self, limits: TenantLimits) -> QueueLimits:
        """Replace the tenant's part by limits of its own."""
        return QueueLimits(
            self.queued_jobs,
            self.queued_cost,
            self.tenant_jobs if limits.max_jobs is None else limits.max_jobs,
            self.tenant_cost if limits.max_cost is None else limits.max_cost,
            self.pixel_bytes,
        )


def submit_error(job: Job, limits: QueueLimits, reply: list[bytes | int]) -> WireError:
    """The error for a reply of ``submit`` that is not "ok": which limit, how full, and when to retry."""
    kind = reply[0].decode() if isinstance(reply[0], bytes) else ""
    if kind == "duplicate":
        return DuplicateJob(f"job {job.job_id} is known with other contents")
    if kind == "known":
        return AlreadySubmitted(f"job {job.job_id} has been submitted already")
    amount, retry_after_s = int(reply[1]), _retry_after_s(int(reply[2]))
    if kind == "tenant":
        return TenantOverLimit(
            f"{amount} requests of this key are waiting or running; the limit is {limits.tenant_jobs}: "
            "wait for one to end",
            retry_after_s=retry_after_s,
        )
    if kind == "tenant_cost":
        return TenantOverLimit(
            f"the requests of this key that are waiting or running take {amount} tokens, this one "
            f"{job.cost:.0f} more; the limit is {limits.tenant_cost:.0f}: wait for one to end",
            retry_after_s=retry_after_s,
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
    return QueueFull(message, retry_after_s=retry_after_s)


def _retry_after_s(milliseconds: int) -> float:
    """The estimate within bounds; 0 milliseconds: there is none."""
    if not milliseconds:
        return _DEFAULT_RETRY_S
    return min(max(milliseconds / 1000, _MIN_RETRY_S), _MAX_RETRY_S)
