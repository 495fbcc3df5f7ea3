"""Projector outputs by picture, so that a picture goes through the vision tower once."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

__all__ = ["PictureName", "VisionCache"]

PictureName = tuple[str, str]  # cache scope, ImageSpan.content


class VisionCache:
    """A least-recently-used store bounded by bytes; with ``max_bytes`` 0 it keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.num_hits = 0
        self.num_misses = 0
        self.num_evictions = 0
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._features: OrderedDict[PictureName, Tensor] = OrderedDict()

    def __contains__(self, name: object) -> bool:
        """Whether the picture is here; counts neither as hit nor as use."""
        return name in self._features

    def get(self, name: PictureName, *, is_first: bool = True) -> Tensor | None:
        """The picture's features, [tokens, hidden].

        Where a picture takes several steps, only the ``is_first`` look at it may count as a hit.
        """
        features = self._features.get(name)
        if features is None:
            self.num_misses += 1
            return None
        self.num_hits += is_first
        self._features.move_to_end(name)
        return features

    def drop(self, name: PictureName) -> None:
        """Forget a picture; an unknown one is no error."""
        features = self._features.pop(name, None)
        if features is not None:
            self.num_bytes -= features.nbytes

    def clear(self) -> None:
        """Forget all pictures."""
        self.num_evictions += len(self._features)
        self._features.clear()
        self.num_bytes = 0

    def put(self, name: PictureName, features: Tensor) -> None:
        """Keep features, unless they alone are larger than the whole store; the oldest make room."""
        if features.nbytes > self._max_bytes or name in self._features:
            return
        self._features[name] = features
        self.num_bytes += features.nbytes
        while self.num_bytes > self._max_bytes:
            _, evicted = self._features.popitem(last=False)
            self.num_bytes -= evicted.nbytes
            self.num_evictions += 1
