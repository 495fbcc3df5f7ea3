"""The images that a controller has sent recently and does not need to send again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

__all__ = ["SentImages"]

MAX_SENT_IMAGES = 4096


class SentImages:
    """An LRU set of the digests of images that are probably still in Redis.

    If one of these images is missing from Redis, ``submit`` reports its digest.
    """

    def __init__(self) -> None:
        self._digests: OrderedDict[str, None] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._digests)

    def unknown(self, digests: Iterable[str]) -> list[str]:
        return [digest for digest in digests if digest not in self._digests]

    def remember(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._digests[digest] = None
            self._digests.move_to_end(digest)
        while len(self._digests) > MAX_SENT_IMAGES:
            self._digests.popitem(last=False)
