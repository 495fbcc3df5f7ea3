"""The request bodies that are being received. If the server is full, slow uploads are ended.

Otherwise, clients that send their bodies slowly could occupy the slots of all open requests.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

__all__ = ["Upload", "Uploads"]

_MIN_DURATION_S = 1.0  # faster uploads are never ended, because they free their slots soon


@dataclass(eq=False)
class Upload:
    """An upload by one tenant. Cancelling ``scope`` ends it."""

    tenant: str
    scope: anyio.CancelScope
    started_at: float = field(default_factory=time.monotonic)
    was_ended: bool = False  # to make room for another request


class Uploads:
    """All uploads of a server."""

    def __init__(self) -> None:
        self._uploads: dict[Upload, None] = {}  # oldest first

    @contextmanager
    def receiving(self, tenant: str, *, timeout_s: float) -> Iterator[Upload]:
        """Run the block until it ends, the timeout expires, or ``make_room`` selects this upload."""
        with anyio.move_on_after(timeout_s) as scope:
            upload = Upload(tenant, scope)
            self._uploads[upload] = None
            try:
                yield upload
            finally:
                self._uploads.pop(upload, None)

    def make_room(self, tenant: str | None = None) -> bool:
        """End the oldest slow upload of the tenant, by default of the tenant with the most slow uploads.

        Return whether there is such an upload.
        """
        started_before = time.monotonic() - _MIN_DURATION_S
        slow = [
            upload
            for upload in self._uploads
            if upload.started_at <= started_before and tenant in (None, upload.tenant)
        ]
        if not slow:
            return False
        tenant, _ = Counter(upload.tenant for upload in slow).most_common(1)[0]
        ended = next(upload for upload in slow if upload.tenant == tenant)
        del self._uploads[ended]
        ended.was_ended = True
        ended.scope.cancel()
        return True
