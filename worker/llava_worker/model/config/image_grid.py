"""Computes the number of tiles and the number of tokens for an image of a given size.

This module does not import torch, because the prompt builder also uses it.

    fit                tiles                          tokens
    pad, crop, squash  one square image               tokens_per_tile
    anyres             base view, then the grid       base view, then the patches of the grid without padding,
                       tiles in row-major order       row by row, with one newline token after each row
    hd                 same as anyres                 same as anyres, but removes only all-padding patches

For ``anyres`` and ``hd``, tiles must be created as follows, after the EXIF orientation of the image has been
applied:

1.  Squash the whole image to side x side pixels, without padding. This is the first tile, the base view.
2.  Select the canvas size in ``grid`` that preserves the most pixels of the image (`best_resolution`).
3.  Resize the image to fit on the canvas, preserving its aspect ratio (`size_on_canvas`). Center it, with its
    top left corner at floor((canvas - image) / 2). The remaining pixels of the canvas are black.
4.  Split the canvas into tiles of side x side pixels, in row-major order.

LLaVA-1.6 uses these rules. ``hd`` implements LLaVA-1.5-HD as described in the paper (arXiv 2310.03744,
appendix A.1), with up to six tiles in the grid. It drops a feature only if its patch consists entirely of
padding. This mode is experimental: no checkpoint for comparison has been published, and the paper does not
specify how to create the global view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = [
    "HD_SHAPES",
    "Fit",
    "OneTileFit",
    "ImageLayout",
    "ImagePlan",
    "Resolution",
    "best_resolution",
    "size_on_canvas",
]

OneTileFit = Literal["pad", "crop", "squash"]
Fit = Literal["pad", "crop", "squash", "anyres", "hd"]
Resolution = tuple[int, int]  # (width, height) in pixels

# The grids from the LLaVA-1.5-HD paper, as (columns, rows).
HD_SHAPES = (*((n, 1) for n in range(1, 7)), *((1, n) for n in range(2, 7)), (2, 2), (2, 3), (3, 2))

_MAX_TILES = 256  # per image; published models use up to 36
_MAX_SHOWN = 50  # resolutions in an error message


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How the tiles of one image are mapped to tokens.

    The grid consists of ``rows`` x ``columns`` tiles. Its patch rows [top, bottom) and patch columns [left,
    right) contain the image; all other patches are padding. Without a grid, ``num_tiles`` is 1, and the last
    six fields are 0.
    """

    num_tiles: int
    num_tokens: int
    columns: int = 0
    rows: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


@dataclass(frozen=True)
class ImageLayout:
    """The rules that a model uses to split images into tiles.

    ``side`` is the side length of a tile in pixels. ``grid`` contains the possible canvas sizes. Raises
    ValueError if a canvas size is not a multiple of the tile size, or if there is a grid and
    ``tokens_per_tile`` is not a square number.
    """

    side: int
    tokens_per_tile: int
    fit: Fit = "pad"
    grid: tuple[Resolution, ...] = ()

    def __post_init__(self) -> None:
        if not self.has_grid:
            return
        if not self.grid or any(n <= 0 or n % self.side for canvas in self.grid for n in canvas):
            resolutions = list(self.grid[:_MAX_SHOWN])
            raise ValueError(
                f"Image grid {resolutions} is not supported; widths and heights must be positive multiples "
                f"of the tile size, {self.side} pixels."
            )
        num_tiles = max(width // self.side * (height // self.side) for width, height in self.grid)
        if num_tiles > _MAX_TILES:
            raise ValueError(
                f"A canvas of the image grid has {num_tiles} tiles of {self.side} pixels; the limit is "
                f"{_MAX_TILES}."
            )
        if self.patches_per_side**2 != self.tokens_per_tile:
            raise ValueError(
                f"A tile has {self.tokens_per_tile} tokens; image grids require a square number of tokens."
            )

    @property
    def has_grid(self) -> bool:
        return self.fit in ("anyres", "hd")

    @cached_property
    def patches_per_side(self) -> int:
        return math.isqrt(self.tokens_per_tile)

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the plan for an image whose original size in pixels is ``width`` x ``height``.

        For a size of 0 x 0, the plan contains only the base view. Raises ValueError for any other size with a
        side below 1 if the layout has a grid.
        """
        if not self.has_grid or width == height == 0:
            return ImagePlan(num_tiles=1, num_tokens=self.tokens_per_tile)
        if width < 1 or height < 1:
            raise ValueError(f"The image size is {width}x{height} pixels; both sides must be at least 1.")
        canvas = best_resolution((width, height), self.grid)
        unpad = self._unpad_hd if self.fit == "hd" else self._unpad_anyres
        (left, right), (top, bottom) = unpad((width, height), canvas)
        columns, rows = canvas[0] // self.side, canvas[1] // self.side
        num_grid_tokens = (bottom - top) * (right - left + 1)
        return ImagePlan(
            1 + columns * rows,
            self.tokens_per_tile + num_grid_tokens,
            columns,
            rows,
            top,
            bottom,
            left,
            right,
        )

    def num_tokens(self, width: int, height: int) -> int:
        """Return the number of prompt tokens for an image whose original size is ``width`` x ``height``."""
        return self.plan(width, height).num_tokens

    def _unpad_anyres(self, size: Resolution, canvas: Resolution) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the ranges of patch columns and patch rows that remain after the padding is removed.

        Half of the padding, rounded down to whole patches, is removed from each side. As in transformers,
        sizes are rounded to seven decimal places before they are rounded down to whole patches. The original
        code skips the first rounding. Its results differ only if a floating-point value is slightly below a
        whole number.
        """
        width, height = size
        across, down = (n // self.side * self.patches_per_side for n in canvas)
        if width / height > across / down:
            padding = (down - int(round(height * (across / width), 7))) // 2
            return (0, across), (padding, down - padding)
        padding = (across - int(round(width * (down / height), 7))) // 2
        return (padding, across - padding), (0, down)

    def _unpad_hd(self, size: Resolution, canvas: Resolution) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the ranges of patch columns and patch rows that contain at least one pixel of the image."""
        patch = self.side / self.patches_per_side
        spans = []
        for total, inner in zip(canvas, size_on_canvas(size, canvas), strict=True):
            start = (total - inner) // 2
            spans.append((math.floor(start / patch), math.ceil((start + inner) / patch)))
        return spans[0], spans[1]


def best_resolution(size: Resolution, grid: tuple[Resolution, ...]) -> Resolution:
    """Return the canvas size that preserves the most pixels of the image.

    If there are several, prefer the one with the least padding, then the one that comes first in ``grid``.
    """
    width, height = size

    def score(canvas: Resolution) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        preserved = min(int(width * scale) * int(height * scale), width * height)
        return preserved, preserved - canvas[0] * canvas[1]

    return max(grid, key=score)


def size_on_canvas(size: Resolution, canvas: Resolution) -> Resolution:
    """Return the largest size with the same aspect ratio that fits on the canvas, rounded up."""
    (width, height), (across, down) = size, canvas
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down
