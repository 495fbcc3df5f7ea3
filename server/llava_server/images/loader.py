"""Load the images in requests: convert image URLs to preprocessed pixels and cache the results."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef

from llava_server.fair_threads import FairThreads
from llava_server.images.data_url import EncodedImage, parse_data_url
from llava_server.images.decoder_pool import DecoderPool, ImageTiles
from llava_server.images.errors import ImageError
from llava_server.images.fetch import ImageFetcher, is_remote
from llava_server.metrics import Metrics

__all__ = ["ImageCache", "ImageLoader", "PreprocessedImage", "image_digest"]

_PREPROCESSING_VERSION = 2  # increment when a change to preprocessing affects the pixels


class PreprocessedImage(NamedTuple):
    """A preprocessed image: the reference to put into the job, and the pixels to send with the job."""

    ref: ImageRef
    pixels: bytes


class ImageCache:
    """An LRU cache of preprocessed images that holds at most ``max_bytes`` bytes of pixels."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._images: OrderedDict[bytes, PreprocessedImage] = OrderedDict()

    def get(self, key: bytes) -> PreprocessedImage | None:
        image = self._images.get(key)
        if image is not None:
            self._images.move_to_end(key)
        return image

    def put(self, key: bytes, image: PreprocessedImage) -> None:
        """Store an image, evicting others if necessary. Images larger than the cache are not stored."""
        if key in self._images or len(image.pixels) > self._max_bytes:
            return
        self._images[key] = image
        self._num_bytes += len(image.pixels)
        while self._num_bytes > self._max_bytes:
            _, evicted = self._images.popitem(last=False)
            self._num_bytes -= len(evicted.pixels)


class ImageLoader:
    """A loader for the images in requests.

    ``load`` handles one image per call, so a request that awaits one call at a time never uses more than one
    decoder process. ``tenant`` is the API key that the work is accounted to, and ``owner`` the scope in which
    the preprocessed image is cached. Methods that take a tenant also raise ApiError (429, 503) if the tenant
    has too many waiting images or the wait takes too long.
    """

    def __init__(
        self,
        pool: DecoderPool,
        fetcher: ImageFetcher,
        threads: FairThreads,
        metrics: Metrics,
        *,
        max_bytes: int,
        cache_bytes: int,
    ) -> None:
        self._pool = pool
        self._fetcher = fetcher
        self._threads = threads
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._cache = ImageCache(cache_bytes)

    async def load(self, url: str, spec: ImageSpec, *, tenant: str, owner: str) -> PreprocessedImage:
        """Fetch or parse one image, then decode and preprocess it. Raises ImageError."""
        if is_remote(url):
            file = await self._fetcher.fetch(url, tenant=tenant)
            return await self.load_file(file, spec, tenant=tenant, owner=owner)
        return await self._load(parse_data_url(url, max_bytes=self._max_bytes), spec, tenant, owner)

    async def load_file(self, file: bytes, spec: ImageSpec, *, tenant: str, owner: str) -> PreprocessedImage:
        """Decode and preprocess an image file. Raises ImageError."""
        self.check_size(len(file))
        encoded = EncodedImage("", await self._threads.run(tenant, partial(base64.b64encode, file)))
        return await self._load(encoded, spec, tenant, owner)

    def check_size(self, num_bytes: int) -> None:
        """Raise ImageError if a file of this size is too large, or empty."""
        if not num_bytes:
            raise ImageError("invalid_image", "the file is empty.")
        if num_bytes > self._max_bytes:
            raise ImageError(
                "image_too_large",
                f"the image is {num_bytes} bytes; the limit is {self._max_bytes} bytes. Send a smaller file.",
            )

    async def _load(
        self, encoded: EncodedImage, spec: ImageSpec, tenant: str, owner: str
    ) -> PreprocessedImage:
        key = await self._threads.run(tenant, partial(_cache_key, encoded, spec, owner))
        cached = self._cache.get(key)
        self._metrics.image_cache_lookup(is_hit=cached is not None)
        if cached is not None:
            return cached
        with self._metrics.image_seconds.time():
            tiles = await self._pool.preprocess(encoded.data, spec, tenant=tenant, encoding=encoded.encoding)
        digest = await self._threads.run(tenant, partial(image_digest, tiles, spec, owner))
        image = PreprocessedImage(_ref(tiles, spec, digest), tiles.pixels)
        self._cache.put(key, image)
        return image


def image_digest(tiles: ImageTiles, spec: ImageSpec, owner: str) -> str:
    """Return the ID that identifies an image's pixels in the wire protocol and in caches.

    The owner is part of the digest, so that timing does not reveal which images other tenants have sent.
    """
    return _keyed_digest(
        owner,
        _spec_bytes(spec),
        struct.pack(">III", tiles.num_tiles, tiles.width, tiles.height),
        tiles.pixels,
    ).hex()


def _cache_key(encoded: EncodedImage, spec: ImageSpec, owner: str) -> bytes:
    return _keyed_digest(owner, _spec_bytes(spec), encoded.encoding.encode(), encoded.data)


def _keyed_digest(owner: str, *parts: bytes) -> bytes:
    """Hash the parts, each preceded by its length, so that different lists of parts never collide."""
    digest = hmac.new(f"llava-picture-{_PREPROCESSING_VERSION}:{owner}".encode(), digestmod=hashlib.sha256)
    for part in parts:
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return digest.digest()


def _spec_bytes(spec: ImageSpec) -> bytes:
    return f"RGB/{spec.side}/{spec.fit}/{spec.background}/{spec.grid}".encode()


def _ref(tiles: ImageTiles, spec: ImageSpec, digest: str) -> ImageRef:
    return ImageRef(
        digest=digest,
        num_tiles=tiles.num_tiles,
        side=0 if spec.fit == "rgb" else spec.side,
        width=tiles.width,
        height=tiles.height,
    )
