"""All pictures of a request: URLs in, ImageRefs and tiles out, and no picture decoded twice."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import struct
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef

from llava_server.images.data_url import Upload, parse_data_url
from llava_server.images.decoder_pool import DecodePool, Picture
from llava_server.images.fetch import PictureFetcher, is_remote
from llava_server.request_metrics import Metrics

__all__ = ["FittedPicture", "PictureCache", "PictureIntake"]

_FIT_VERSION = 1  # raised when the same upload would give other pixels than before


class FittedPicture(NamedTuple):
    """A reference for the job and the tiles that travel beside it."""

    ref: ImageRef
    pixels: bytes


class PictureCache:
    """Least recently used pictures within ``max_bytes`` of pixels."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._pictures: OrderedDict[bytes, FittedPicture] = OrderedDict()

    def get(self, key: bytes) -> FittedPicture | None:
        picture = self._pictures.get(key)
        if picture is not None:
            self._pictures.move_to_end(key)
        return picture

    def put(self, key: bytes, picture: FittedPicture) -> None:
        """Remembers the picture unless it is larger than the whole cache."""
        if key in self._pictures or len(picture.pixels) > self._max_bytes:
            return
        self._pictures[key] = picture
        self._num_bytes += len(picture.pixels)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._pictures.popitem(last=False)
            self._num_bytes -= len(oldest.pixels)


class PictureIntake:
    """Turns the picture URLs of one request into fitted pictures, in order."""

    def __init__(
        self,
        pool: DecodePool,
        fetcher: PictureFetcher,
        metrics: Metrics,
        *,
        max_bytes: int,
        cache_bytes: int,
    ) -> None:
        self._pool = pool
        self._fetcher = fetcher
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._cache = PictureCache(cache_bytes)
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="picture-hash")

    async def take(self, url: str, spec: ImageSpec, *, tenant: str) -> FittedPicture:
        """One picture. Raises PictureRefused with the reason."""
        run = asyncio.get_running_loop().run_in_executor
        if is_remote(url):
            raw = await self._fetcher.fetch(url)
            upload = Upload(
                "", await run(self._hasher, base64.b64encode, raw)
            )  # what it is called is no proof
        else:
            upload = parse_data_url(url, max_bytes=self._max_bytes)
        key = await run(self._hasher, _upload_key, upload, spec, tenant)
        known = self._cache.get(key)
        self._metrics.image_cache_lookup(is_hit=known is not None)
        if known is not None:
            return known
        with self._metrics.image_seconds.time():
            picture = await self._pool.fit(upload.base64, spec)
        digest = await run(self._hasher, picture_digest, picture, spec, tenant)
        fitted = FittedPicture(_ref(picture, spec, digest), picture.pixels)
        self._cache.put(key, fitted)
        return fitted

    async def take_all(self, urls: Sequence[str], spec: ImageSpec, *, tenant: str) -> list[FittedPicture]:
        """In the order of ``urls``, one after another: a request never holds more than one child."""
        return [await self.take(url, spec, tenant=tenant) for url in urls]

    def close(self) -> None:
        self._hasher.shutdown(wait=True)


def picture_digest(picture: Picture, spec: ImageSpec, tenant: str) -> str:
    """The name under which pixels travel and are cached: equal only for the same tenant, size, fit and bytes.

    Keyed by the tenant, so that nobody can tell by timing whether another tenant has sent the same picture.
    Every part is preceded by its length, so that no two different inputs run together to the same bytes.
    """
    return _keyed_digest(
        tenant,
        _spec_bytes(spec),
        struct.pack(">III", picture.num_tiles, picture.width, picture.height),
        picture.pixels,
    ).hex()


def _upload_key(upload: Upload, spec: ImageSpec, tenant: str) -> bytes:
    return _keyed_digest(tenant, _spec_bytes(spec), upload.base64)


def _keyed_digest(tenant: str, *parts: bytes) -> bytes:
    digest = hmac.new(f"llava-picture-{_FIT_VERSION}:{tenant}".encode(), digestmod=hashlib.sha256)
    for part in parts:
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return digest.digest()


def _spec_bytes(spec: ImageSpec) -> bytes:
    return f"RGB/{spec.side}/{spec.fit}/{spec.background}/{spec.grid}".encode()


def _ref(picture: Picture, spec: ImageSpec, digest: str) -> ImageRef:
    return ImageRef(
        digest=digest,
        num_tiles=picture.num_tiles,
        side=spec.side,
        width=picture.width,
        height=picture.height,
    )
