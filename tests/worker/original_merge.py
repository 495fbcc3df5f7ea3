"""A plain implementation of how the original code merges the features of an image's tiles."""

from __future__ import annotations

import math

import torch
from llava_worker.model.config.image_grid import ImageLayout, best_resolution
from torch.nn.functional import interpolate

__all__ = ["merge_features"]


def merge_features(
    features: torch.Tensor, size: tuple[int, int], layout: ImageLayout, newline: torch.Tensor
) -> torch.Tensor:
    """Return [tokens, hidden] for features [tiles, patches, hidden] and the image size (width, height)."""
    if layout.merge == "flat":
        return torch.cat(list(features))
    base, tiles = features[0], features[1:]
    across, down = (length // layout.side for length in best_resolution(size, layout.grid))
    side = math.isqrt(len(base))
    squares = [tile.reshape(side, side, -1) for tile in tiles]
    bands = [torch.cat(squares[row * across : (row + 1) * across], dim=1) for row in range(down)]
    grid = torch.cat(bands)  # [rows, columns, hidden]
    if layout.merge == "spatial":
        return torch.cat([base, *grid])
    grid = _reduced(_unpadded(grid, size), layout.max_tiles, side)
    return torch.cat([base, *(torch.cat([row, newline[None]]) for row in grid)])


def _unpadded(grid: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    (width, height), (rows, columns, _) = size, grid.shape
    if width / height > columns / rows:
        padding = (rows - int(height * (columns / width))) // 2
        return grid[padding : rows - padding]
    padding = (columns - int(width * (rows / height))) // 2
    return grid[:, padding : columns - padding]


def _reduced(grid: torch.Tensor, max_tiles: int | None, side: int) -> torch.Tensor:
    if max_tiles is None:
        return grid
    rows, columns, _ = grid.shape
    times = math.sqrt(rows * columns / (max_tiles * side**2))
    if times <= 1.1:
        return grid
    reduced = (int(rows // times), int(columns // times))
    return interpolate(grid.movedim(-1, 0)[None], reduced, mode="bilinear")[0].movedim(0, -1)
