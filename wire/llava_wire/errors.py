"""Exceptions raised by this package. ``redis/connection.py`` converts Redis errors to ``QueueUnavailable``.

WireError
├── QueueUnavailable       Redis is unavailable (HTTP 503)
│   └── ImageStoreUnavailable   the image store is unavailable, but the queue is not (HTTP 503)
├── DuplicateJob           a job with the same ID but different contents exists
├── AlreadySubmitted       the job was submitted through another controller, or has ended
├── QueueFull              the model's queue is full (HTTP 503)
├── ResponseTooLarge       a response is too large to be stored (HTTP 400)
├── StoreFull              no room for a file or a batch (HTTP 429, or 503 if other tenants use the space)
└── TenantOverLimit        the tenant has reached a limit on live jobs (HTTP 429)
"""

from __future__ import annotations

__all__ = [
    "AlreadySubmitted",
    "DuplicateJob",
    "ImageStoreUnavailable",
    "QueueFull",
    "QueueUnavailable",
    "ResponseTooLarge",
    "StoreFull",
    "TenantOverLimit",
    "WireError",
]


class WireError(Exception):
    """Base class for all exceptions that this package raises."""


class DuplicateJob(WireError):
    """A job with the same ID but different contents already exists."""


class AlreadySubmitted(WireError):
    """The job is live, or it ended within the last few minutes.

    To read its events, use ``JobProducer.snapshot`` or ``JobProducer.attach``.
    """


class QueueUnavailable(WireError):
    """Redis is temporarily unavailable. Retry after ``retry_after_s`` seconds.

    ``is_disconnect`` is true if the connection failed or was closed, so that an immediate retry may succeed.
    ``kind`` is the first word of an error reply, such as "NOREPLICAS", or "timeout" or "connection". Unlike
    the message, it never contains an address or a user name.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 1.0,
        is_disconnect: bool = False,
        kind: str = "unknown",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.is_disconnect = is_disconnect


class ImageStoreUnavailable(QueueUnavailable):
    """The image store is temporarily unavailable. Jobs without images are not affected."""

    def __init__(self, reason: str, *, kind: str) -> None:
        super().__init__(f"The image store is unavailable: {reason}", kind=kind)


class QueueFull(WireError):
    """The queue is full. ``retry_after_s`` is the estimated time until a retry can succeed."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TenantOverLimit(WireError):
    """The tenant has reached a limit on live jobs.

    ``retry_after_s`` is the estimated time until a retry can succeed.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreFull(WireError):
    """There is no room for a file or batch. ``is_own`` is True if the tenant has reached its own limit."""

    def __init__(self, message: str, *, is_own: bool) -> None:
        super().__init__(message)
        self.is_own = is_own


class ResponseTooLarge(WireError):
    """A response cannot be stored, because it needs ``num_bytes`` bytes and the limit is ``max_bytes``."""

    def __init__(self, num_bytes: int, max_bytes: int) -> None:
        super().__init__(f"{num_bytes} bytes are needed; the limit is {max_bytes} bytes")
        self.num_bytes = num_bytes
        self.max_bytes = max_bytes
