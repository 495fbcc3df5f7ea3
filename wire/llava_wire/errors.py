"""What the wire raises. Errors of Redis itself are mapped to ``QueueUnavailable`` in ``connection``.

WireError
├── QueueUnavailable       Redis cannot be reached: answer 503
├── DuplicateJob           the same job id with other contents
├── AlreadySubmitted       the same job has been submitted by somebody else
├── QueueFull              the model's waiting room is full: answer 503
├── StoreFull              no room for a file or a batch: answer 429, or 503 if others take it
└── TenantOverLimit        this tenant has its share of live jobs: answer 429
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
    """Base of everything that this package raises on purpose."""


class DuplicateJob(WireError):
    """A job with this id, but with other contents, is known already."""


class AlreadySubmitted(WireError):
    """This very job is live, or ended minutes ago: ``peek`` at it, or ``attach``."""


class QueueUnavailable(WireError):
    """Redis did not answer in time; ``retry_after_s`` is when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(WireError):
    """The queue takes no more now; ``retry_after_s`` is when a place should be free."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TenantOverLimit(WireError):
    """The tenant has too many live jobs; ``retry_after_s`` is when one should have ended."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreFull(WireError):
    """There is no room for a file or a batch; ``is_own``: because of what the same tenant has there."""

    def __init__(self, message: str, *, is_own: bool) -> None:
        super().__init__(message)
        self.is_own = is_own
