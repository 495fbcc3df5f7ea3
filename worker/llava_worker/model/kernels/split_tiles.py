"""Tiles of a matrix product, and the number of splits that uses all multiprocessors of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llava_worker.model.kernels.triton_launch import num_multiprocessors, semaphores

__all__ = ["MAX_SPLITS", "SplitTiles", "Tile"]

MAX_SPLITS = 8
_MIN_UTILIZATION = 0.9
_MIN_STEPS = 2  # iterations per split, below which the sum would take longer than the product


@dataclass(frozen=True, slots=True)
class Tile:
    """The part of a product that a program computes, and the settings of the program.

    ``parts`` is the number of products per iteration. A multiprocessor needs ``programs`` programs for enough
    loads to be in flight.
    """

    rows: int
    outputs: int
    parts: int
    num_warps: int
    num_stages: int
    programs: int


@dataclass(frozen=True, slots=True)
class SplitTiles:
    """The programs of a product: ``grid`` is (row tiles, output tiles, splits).

    Each split has ``steps`` iterations, except that the last one can have fewer.
    """

    tile: Tile
    grid: tuple[int, int, int]
    steps: int
    device: torch.device

    @classmethod
    def choose(cls, tile: Tile, rows: int, outputs: int, steps: int, device: torch.device) -> SplitTiles:
        """Choose the number of splits of a product with this number of iterations per tile."""
        row_tiles, output_tiles = -(-rows // tile.rows), -(-outputs // tile.outputs)
        multiprocessors = num_multiprocessors(device)
        splits = _num_splits(max(1, row_tiles * output_tiles), steps, tile.programs, multiprocessors)
        per_split = -(-steps // splits)
        return cls(tile, (row_tiles, output_tiles, -(-steps // per_split)), per_split, device)

    @property
    def splits(self) -> int:
        return self.grid[2]

    def partials(self, dtype: torch.dtype) -> Tensor:
        """Return uninitialized memory for the results of all splits, [tiles * splits, rows, outputs]."""
        num = self.grid[0] * self.grid[1] * self.splits if self.splits > 1 else 1
        return torch.empty(num, self.tile.rows, self.tile.outputs, dtype=dtype, device=self.device)

    def counters(self) -> Tensor:
        """Return a semaphore for each tile."""
        return semaphores(self.grid[0] * self.grid[1], self.device)


@cache
def _num_splits(tiles: int, steps: int, programs: int, multiprocessors: int) -> int:
    """Return the smallest number of splits that gives all multiprocessors nearly the same amount of work."""

    def utilization(splits: int) -> float:
        per_multiprocessor = max(programs, -(-tiles * splits // multiprocessors))
        return tiles * splits / (multiprocessors * per_multiprocessor)

    candidates = range(1, max(1, min(MAX_SPLITS, steps // _MIN_STEPS)) + 1)
    good = (splits for splits in candidates if utilization(splits) >= _MIN_UTILIZATION)
    return next(good, max(candidates, key=utilization))
