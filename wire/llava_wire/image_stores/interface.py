"""The interface of image stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable

__all__ = ["ImageStore"]


class ImageStore(ABC):
    """Stores the tiles of images, keyed by digest, until their TTL has passed.

    A store may lose images at any time: workers report missing images to the queue, and the controller of the
    job stores them again. The queue counts the bytes, so that a store needs no limit of its own. All methods
    raise ImageStoreUnavailable if the store does not respond or returns an error.
    """

    @property
    @abstractmethod
    def num_errors(self) -> Counter[str]:
        """The number of errors so far, keyed by kind."""

    @abstractmethod
    async def put(self, digest: str, tiles: bytes, *, ttl_s: float) -> None:
        """Store an image, or replace it with the same image. Readers never see a part of it."""

    @abstractmethod
    async def get(self, digest: str) -> bytes | None:
        """Return an image, or None if it is not stored."""

    @abstractmethod
    async def touch(self, digest: str, *, ttl_s: float) -> bool:
        """Extend the TTL of an image to at least ``ttl_s``. Return False if the image is not stored."""

    @abstractmethod
    async def delete(self, digests: Iterable[str]) -> None:
        """Delete images. Those that are not stored are ignored."""

    @abstractmethod
    async def capacity_bytes(self) -> int:
        """Return the number of bytes that the store can hold, or 0 if it is unknown."""

    @abstractmethod
    async def remove_expired(self) -> None:
        """Remove expired images, unless the store does this itself."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close all connections. Does not raise, even if the store does not respond."""
