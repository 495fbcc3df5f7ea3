"""Reading the images of pulled jobs from an image store."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from llava_wire.errors import ImageStoreUnavailable
from llava_wire.image_stores.interface import ImageStore
from llava_wire.messages.job import ImageRef

__all__ = ["ImageReader"]

_PAUSE_S = 1.0  # time without attempts after a timeout, because jobs without images wait for a pull to end
_log = logging.getLogger(__name__)


class ImageReader:
    """Reads images from ``store``, which is None if the queue stores them. Logs those that it cannot read."""

    def __init__(self, store: ImageStore | None) -> None:
        self._store = store
        self._paused_until = 0.0  # in seconds of the monotonic clock

    async def read(self, images: Iterable[ImageRef]) -> dict[str, bytes]:
        """Return the tiles of the images that can be read, keyed by digest. Never raises."""
        sizes = {image.digest: image.num_bytes for image in images}
        tiles = await asyncio.gather(*(self._read(digest, size) for digest, size in sizes.items()))
        return {digest: found for digest, found in zip(sizes, tiles, strict=True) if found is not None}

    async def aclose(self) -> None:
        if self._store is not None:
            await self._store.aclose()

    async def _read(self, digest: str, num_bytes: int) -> bytes | None:
        if self._store is None:
            _log.error(
                "image %s is in an image store, but this worker has none: LLAVA_IMAGE_STORE must be the same "
                "for all servers and workers",
                digest,
            )
            return None
        if time.monotonic() < self._paused_until:
            return None
        try:
            tiles = await self._store.get(digest)
        except ImageStoreUnavailable as error:
            if error.kind == "timeout":
                self._paused_until = time.monotonic() + _PAUSE_S
            _log.warning("image %s cannot be read: %s", digest, error)
            return None
        if tiles is not None and len(tiles) == num_bytes:
            return tiles
        found = "is missing in" if tiles is None else f"has {len(tiles)} instead of {num_bytes} bytes in"
        _log.warning("image %s %s the image store; its controller is asked to store it again", digest, found)
        return None
