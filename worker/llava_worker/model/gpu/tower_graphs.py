"""CUDA graphs for the vision tower and the projector.

If there are only a few tiles, launching the kernels takes longer than the computation itself.

The features of a tile do not depend on other tiles. If a graph has more tiles than necessary, the unused
tiles contain data from earlier calls, and their features are discarded.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

import torch
from torch import Tensor

from llava_worker.model.gpu.cuda_graphs import GraphPool, Replay, capture_sizes
from llava_worker.model.llava import Llava

__all__ = ["TowerGraphs"]


class TowerGraphs:
    """Graphs for a model. They share one input tensor: a graph for n tiles reads its first n tiles."""

    def __init__(self, model: Llava, pool: GraphPool, *, max_tiles: int) -> None:
        """Capture all graphs, beginning with the largest, so that the others can reuse its memory."""
        self._model = model
        self._sizes = capture_sizes(max_tiles)
        side = model.config.image_layout().side
        self._tiles = torch.zeros(max_tiles, side, side, 3, dtype=torch.uint8, device=model.device)
        self._graphs: dict[int, tuple[Tensor, Replay]] = {}  # keyed by number of tiles
        with torch.inference_mode():
            for size in reversed(self._sizes):
                compute = partial(model.encode, self._tiles[:size])
                pool.warm_up(compute)
                self._graphs[size] = pool.capture(compute)

    @torch.inference_mode()
    def encode(self, tiles: Tensor) -> Tensor:
        """Encode tiles like `Llava.encode`, but use a graph if one is large enough."""
        num = len(tiles)
        index = bisect_left(self._sizes, num)
        if index == len(self._sizes):
            return self._model.encode(tiles)
        out, replay = self._graphs[self._sizes[index]]
        self._tiles[:num].copy_(tiles)
        replay()
        return out[:num].clone()  # the next replay overwrites it
