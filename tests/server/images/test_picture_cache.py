"""What names a picture, and how many are kept."""

from __future__ import annotations

from llava_server.images.decoder_pool import Picture
from llava_server.images.loader import FittedPicture, PictureCache, picture_digest
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef

SPEC = ImageSpec(side=2)


def picture(pixels: bytes = bytes(12), *, width: int = 4, height: int = 3) -> Picture:
    return Picture(pixels, num_tiles=1, width=width, height=height)


def fitted(num_bytes: int) -> FittedPicture:
    return FittedPicture(ImageRef(digest="d", num_tiles=1, side=2, width=1, height=1), bytes(num_bytes))


def test_digest_is_equal_for_equal_pictures_of_one_tenant() -> None:
    assert picture_digest(picture(), SPEC, "a") == picture_digest(picture(), SPEC, "a")


def test_digest_differs_by_tenant_size_fit_and_pixels() -> None:
    digests = {
        picture_digest(picture(), SPEC, "a"),
        picture_digest(picture(), SPEC, "b"),
        picture_digest(picture(width=3, height=4), SPEC, "a"),
        picture_digest(picture(bytes(11) + b"x"), SPEC, "a"),
        picture_digest(picture(), ImageSpec(side=2, fit="crop"), "a"),
        picture_digest(picture(), ImageSpec(side=2, background=(0, 0, 0)), "a"),
    }
    assert len(digests) == 6


def test_cache_forgets_the_least_recently_used_beyond_its_bytes() -> None:
    cache = PictureCache(30)
    cache.put(b"a", fitted(12))
    cache.put(b"b", fitted(12))
    assert cache.get(b"a") is not None
    cache.put(b"c", fitted(12))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.get(b"c") is not None


def test_picture_larger_than_the_cache_displaces_nothing() -> None:
    cache = PictureCache(20)
    cache.put(b"a", fitted(12))
    cache.put(b"b", fitted(21))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None
