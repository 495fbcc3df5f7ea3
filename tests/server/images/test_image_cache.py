"""Image digests, and the LRU cache of preprocessed images."""

from __future__ import annotations

from llava_server.images.decoder_pool import ImageTiles
from llava_server.images.loader import ImageCache, PreprocessedImage, image_digest
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef

SPEC = ImageSpec(side=2)


def tiles(pixels: bytes = bytes(12), *, width: int = 4, height: int = 3) -> ImageTiles:
    return ImageTiles(pixels, num_tiles=1, width=width, height=height)


def preprocessed(num_bytes: int) -> PreprocessedImage:
    return PreprocessedImage(ImageRef(digest="d", num_tiles=1, side=2, width=1, height=1), bytes(num_bytes))


def test_digest_is_equal_for_equal_images_of_one_tenant() -> None:
    assert image_digest(tiles(), SPEC, "a") == image_digest(tiles(), SPEC, "a")


def test_digest_differs_by_tenant_size_spec_and_pixels() -> None:
    digests = {
        image_digest(tiles(), SPEC, "a"),
        image_digest(tiles(), SPEC, "b"),
        image_digest(tiles(width=3, height=4), SPEC, "a"),
        image_digest(tiles(bytes(11) + b"x"), SPEC, "a"),
        image_digest(tiles(), ImageSpec(side=2, fit="crop"), "a"),
        image_digest(tiles(), ImageSpec(side=2, background=(0, 0, 0)), "a"),
    }
    assert len(digests) == 6


def test_cache_above_its_size_limit_evicts_the_least_recently_used_image() -> None:
    cache = ImageCache(30)
    cache.put(b"a", preprocessed(12))
    cache.put(b"b", preprocessed(12))
    assert cache.get(b"a") is not None
    cache.put(b"c", preprocessed(12))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.get(b"c") is not None


def test_image_larger_than_the_cache_evicts_nothing() -> None:
    cache = ImageCache(20)
    cache.put(b"a", preprocessed(12))
    cache.put(b"b", preprocessed(21))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None
