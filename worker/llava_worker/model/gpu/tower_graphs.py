"""Pictures through tower and projector as a recording: of few tiles the launches take longer than the work.

Tiles do not see each other. So a recording of more than there are computes what it is asked beside tiles of
an earlier picture, whose features nobody reads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor

from llava_worker.model.gpu.cuda_graphs import Recorder, buckets_up_to
from llava_worker.model.llava import Llava

__all__ = ["TowerGraphs"]


class TowerGraphs:
    """Over one model; the buckets share their tiles, of which each takes the first."""

    def __init__(self, model: Llava, record: Recorder, *, max_tiles: int) -> None:
        self._model = model
        self._record = record
        self._buckets = buckets_up_to(max_tiles)
        side = model.config.picture_layout().side
        self._tiles = torch.zeros(max_tiles, side, side, 3, dtype=torch.uint8, device=model.device)
        self._recorded: dict[int, tuple[Tensor, Callable[[], object]]] = {}

    @torch.inference_mode()
    def record_all(self) -> None:
        """The largest first, in whose memory the others find room."""
        for size in reversed(self._buckets):
            tiles = self._tiles[:size]
            self._recorded[size] = self._record(lambda tiles=tiles: self._model.encode(tiles))  # type: ignore[misc]

    @torch.inference_mode()
    def encode(self, tiles: Tensor) -> Tensor:
        """As `Llava.encode`; more tiles than were recorded are computed."""
        num = len(tiles)
        at = bisect_left(self._buckets, num)
        if at == len(self._buckets) or not self._recorded:
            return self._model.encode(tiles)
        out, replay = self._recorded[self._buckets[at]]
        self._tiles[:num].copy_(tiles)
        replay()
        return out[:num].clone()  # the next recording that runs writes there
