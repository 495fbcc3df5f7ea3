"""Exceptions of this package. Redis errors are raised as ``QueueUnavailable`` (``redis/connection.py``).

WireError
├── QueueUnavailable       Redis cannot be reached: 503
├── DuplicateJob           a job with the same ID but different contents exists
├── AlreadySubmitted       the job was submitted through another controller, or has ended
├── QueueFull              the model's queue is full: 503
├── StoreFull              no room for a file or a batch: 429, or 503 if other tenants use the space
└── TenantOverLimit        the tenant has reached a limit on live jobs: 429
"""

from __future__ import annotations

__all__ = [
    "AlreadySubmitted",
    "DuplicateJob",
    "QueueFull",
    "QueueUnavailable",
    "StoreFull",
    "TenantOverLimit",
    "WireError",
]


class WireError(Exception):
    """Base class of the exceptions of this package."""


class DuplicateJob(WireError):
    """A job with the same ID but different contents already exists."""


class AlreadySubmitted(WireError):
    """The same job is live or ended minutes ago. Use ``JobProducer.snapshot`` or ``attach``."""


class QueueUnavailable(WireError):
    """Redis is unavailable. Retry after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(WireError):
    """The queue is full. ``retry_after_s`` is the estimated time until it has room."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TenantOverLimit(WireError):
    """The tenant has too many live jobs. ``retry_after_s`` is the estimated time until one ends."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreFull(WireError):
    """There is no room for a file or batch. ``is_own``: the tenant's own files or batches use the space."""

    def __init__(self, message: str, *, is_own: bool) -> None:
        super().__init__(message)
        self.is_own = is_own
