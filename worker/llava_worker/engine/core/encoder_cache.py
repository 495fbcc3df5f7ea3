"""The encoder cache: stores projected image features so that each image is encoded only once."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

__all__ = ["EncoderCache", "ImageKey"]

ImageKey = tuple[str, str]  # cache scope, ImageSpan.content


class EncoderCache:
    """An LRU cache that holds at most ``max_bytes`` bytes. If ``max_bytes`` is 0, nothing is cached."""

    def __init__(self, max_bytes: int) -> None:
        self.num_hits = 0
        self.num_misses = 0
        self.num_evictions = 0
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._features: OrderedDict[ImageKey, Tensor] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        """Return whether the image is cached, without counting a hit or updating the LRU order."""
        return key in self._features

    def get(self, key: ImageKey, *, is_first: bool = True) -> Tensor | None:
        """Return the features of the image, [tokens, hidden], or None if they are not cached.

        If the prefill of an image is split across several steps, only the first access, for which
        ``is_first`` is true, counts as a hit.
        """
        features = self._features.get(key)
        if features is None:
            self.num_misses += 1
            return None
        self.num_hits += is_first
        self._features.move_to_end(key)
        return features

    def drop(self, key: ImageKey) -> None:
        """Remove an image from the cache. Does nothing if it is not cached."""
        features = self._features.pop(key, None)
        if features is not None:
            self.num_bytes -= features.nbytes

    def clear(self) -> None:
        """Evict all images."""
        self.num_evictions += len(self._features)
        self._features.clear()
        self.num_bytes = 0

    def put(self, key: ImageKey, features: Tensor) -> None:
        """Store the features of an image, evicting those of the least recently used images to make room.

        Features larger than the whole cache are not stored.
        """
        if features.nbytes > self._max_bytes or key in self._features:
            return
        self._features[key] = features
        self.num_bytes += features.nbytes
        while self.num_bytes > self._max_bytes:
            _, evicted = self._features.popitem(last=False)
            self.num_bytes -= evicted.nbytes
            self.num_evictions += 1
