"""What one tenant may have of the queue: its weight beside others and its own limits."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_TENANT_LIMITS", "TenantLimits"]


@dataclass(frozen=True)
class TenantLimits:
    """``weight`` 3 gets three times the tokens of ``weight`` 1 while both have work waiting. ``max_jobs``
    counts waiting and running jobs, ``max_cost`` their tokens together; None: as the controller is set."""

    weight: float = 1.0
    max_jobs: int | None = None
    max_cost: float | None = None


DEFAULT_TENANT_LIMITS = TenantLimits()
