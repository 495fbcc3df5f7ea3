"""Exceptions of this package. Errors of Redis itself become ``QueueUnavailable`` (``redis/connection.py``).

WireError
├── QueueUnavailable       Redis cannot be reached: 503
├── DuplicateJob           the job ID is in use for a job with other contents
├── AlreadySubmitted       the same job was submitted through another controller, or has ended
├── QueueFull              the model's queue is full: 503
├── StoreFull              no room for a file or a batch: 429, or 503 if other tenants use it
└── TenantOverLimit        the tenant has reached its limit of live jobs: 429
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
    """A job with this ID, but with other contents, exists already."""


class AlreadySubmitted(WireError):
    """This very job is live, or ended minutes ago: use ``snapshot`` or ``attach``."""


class QueueUnavailable(WireError):
    """Redis did not answer in time; ``retry_after_s`` is when to retry."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(WireError):
    """The queue is full; ``retry_after_s`` is when there should be room."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TenantOverLimit(WireError):
    """The tenant has too many live jobs; ``retry_after_s`` is when one should have ended."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreFull(WireError):
    """There is no room for a file or a batch; ``is_own``: because of the tenant's own files or batches."""

    def __init__(self, message: str, *, is_own: bool) -> None:
        super().__init__(message)
        self.is_own = is_own
