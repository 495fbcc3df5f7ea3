"""Putting the images of jobs into an image store, so that the queue contains only references."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from llava_wire.controller_side.delivery_ledger import LiveJob
from llava_wire.errors import ImageStoreUnavailable
from llava_wire.image_stores.interface import ImageStore
from llava_wire.redis.connection import Link, retry_briefly

__all__ = ["ImageUploader", "ImagesLost"]

_KEEP_S = 360.0  # longer than KEEP_MS in scripts/shared/base.lua, so that an image outlives its reference
_UNLIMITED = 1 << 50  # limit for images that the queue has already accepted


class ImagesLost(Exception):
    """Neither the store nor this controller has all images of a job."""


class ImageUploader:
    """Puts images into a store, after the queue has reserved space for them.

    Every job extends the TTL of its images in the store, so that a submission fails while the store is
    unavailable, and images that the store has lost are found before the job is queued.
    """

    def __init__(self, link: Link, store: ImageStore) -> None:
        self._link = link
        self.store = store

    async def upload(self, live: LiveJob, *, max_bytes: int = _UNLIMITED) -> list[Any] | None:
        """Store the images of a job that are not stored yet, and create references to them.

        If more than ``max_bytes`` would be stored in total, store nothing and return the same reply as
        ``submit``. Raises QueueUnavailable and ImagesLost.
        """
        sizes = {image.digest: image.num_bytes for image in live.job.images}
        if not sizes:
            return None
        args = [arg for pair in sizes.items() for arg in pair]
        reply: list[Any] = await retry_briefly(
            lambda: self._link.script("reserve_images", live.job.tenant, live.remaining_ms, max_bytes, *args)
        )
        dropped = reply.pop(0)
        await self._delete(digest.decode() for digest in dropped)
        if reply[0] != b"ok":
            return reply
        ttl_s = live.remaining_ms / 1000 + _KEEP_S
        for digest in sizes:
            if await self.store.touch(digest, ttl_s=ttl_s):
                continue
            if (tiles := live.pixels.get(digest)) is None:
                raise ImagesLost(digest)
            await self.store.put(digest, tiles, ttl_s=ttl_s)
        return None

    async def _delete(self, digests: Iterable[str]) -> None:
        with suppress(ImageStoreUnavailable):  # the images expire
            await self.store.delete(digests)
