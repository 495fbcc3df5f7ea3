"""From a picture's size to its tiles and tokens; pure arithmetic, no torch, so that prompt code can ask too.

    fit                tiles of a picture                 tokens
    pad, crop, squash  the picture, square                tokens_per_tile
    anyres             base view, then the grid row by    base view, then the grid's rows of patches joined,
                       row                                padding cut away, one newline after each row
    hd                 the same tiles                     the same, with padding cut to the patch

What ``anyres`` and ``hd`` expect of whoever cuts the tiles, with ``width`` x ``height`` the upright original:

1.  The base view comes first: the whole picture squashed to side x side, without padding.
2.  The canvas is the resolution of ``grid`` that keeps the most of the picture (`best_resolution`).
3.  The picture is resized to the canvas keeping its shape (`fitted_size`) and pasted into its middle, at
    floor((canvas - picture) / 2); the rest is black.
4.  The canvas is cut into tiles of side x side, row by row from the upper left.

The rules are LLaVA-1.6's. ``hd`` is LLaVA-1.5-HD as its paper describes it (arXiv 2310.03744, appendix A.1):
up to six tiles, and a feature is dropped only where its patch shows nothing but padding. It is experimental:
no such checkpoint was ever published to compare with, and the paper leaves open how the global view is made.
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
    "fitted_size",
]

OneTileFit = Literal["pad", "crop", "squash"]
Fit = Literal["pad", "crop", "squash", "anyres", "hd"]
Resolution = tuple[int, int]  # width, height, in pixels

# The paper's grids, (columns, rows).
HD_SHAPES = (*((n, 1) for n in range(1, 7)), *((1, n) for n in range(2, 7)), (2, 2), (2, 3), (3, 2))


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How one picture's tiles become tokens.

    The grid's patches form a map of ``rows`` x ``columns`` tiles; [top, bottom) and [left, right) of it, in
    patches, show the picture. No grid: ``num_tiles`` is 1 and the numbers of the grid are 0.
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
    """One model's way to see pictures. ``grid``: canvases to choose from, (width, height) in pixels.

    Raises ValueError for a layout that cannot be: a grid that tiles do not fill, or tiles that are no square
    of patches where a grid needs one.
    """

    side: int
    tokens_per_tile: int
    fit: Fit = "pad"
    grid: tuple[Resolution, ...] = ()

    def __post_init__(self) -> None:
        if not self.has_grid:
            return
        if not self.grid or any(n <= 0 or n % self.side for canvas in self.grid for n in canvas):
            raise ValueError(f"image grid {list(self.grid)} is not made of tiles of {self.side} pixels")
        if self.patches_per_side**2 != self.tokens_per_tile:
            raise ValueError(f"a tile of {self.tokens_per_tile} tokens is no square, as image grids need it")

    @property
    def has_grid(self) -> bool:
        return self.fit in ("anyres", "hd")

    @cached_property
    def patches_per_side(self) -> int:
        return math.isqrt(self.tokens_per_tile)

    def plan(self, width: int, height: int) -> ImagePlan:
        """For a picture of that original size in pixels; 0 x 0 is one shown in its base view only. Raises
        ValueError where a grid needs a size."""
        if not self.has_grid or width == height == 0:
            return ImagePlan(num_tiles=1, num_tokens=self.tokens_per_tile)
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width}x{height} pixels")
        canvas = best_resolution((width, height), self.grid)
        cut = self._cut_as_paper if self.fit == "hd" else self._cut_as_original
        (left, right), (top, bottom) = cut((width, height), canvas)
        columns, rows = canvas[0] // self.side, canvas[1] // self.side
        num_map_tokens = (bottom - top) * (right - left + 1)
        return ImagePlan(
            1 + columns * rows, self.tokens_per_tile + num_map_tokens, columns, rows, top, bottom, left, right
        )

    def num_tokens(self, width: int, height: int) -> int:
        """Tokens that a picture of that original size takes in a prompt."""
        return self.plan(width, height).num_tokens

    def _cut_as_original(self, size: Resolution, canvas: Resolution) -> tuple[Resolution, Resolution]:
        """Half of the padding on either side, in whole patches.

        transformers rounds to seven places before it cuts to whole patches; the original does not, which
        tells only where floating point falls just short of a whole number.
        """
        width, height = size
        across, down = (n // self.side * self.patches_per_side for n in canvas)
        if width / height > across / down:
            padding = (down - int(round(height * (across / width), 7))) // 2
            return (0, across), (padding, down - padding)
        padding = (across - int(round(width * (down / height), 7))) // 2
        return (padding, across - padding), (0, down)

    def _cut_as_paper(self, size: Resolution, canvas: Resolution) -> tuple[Resolution, Resolution]:
        """Every patch with at least one pixel of the picture."""
        patch = self.side / self.patches_per_side
        spans = []
        for total, inner in zip(canvas, fitted_size(size, canvas), strict=True):
            start = (total - inner) // 2
            spans.append((math.floor(start / patch), math.ceil((start + inner) / patch)))
        return spans[0], spans[1]


def best_resolution(size: Resolution, grid: tuple[Resolution, ...]) -> Resolution:
    """The canvas that keeps most of the picture's pixels; among equals the one with the least waste, then
    the first."""
    width, height = size

    def merit(canvas: Resolution) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(grid, key=merit)


def fitted_size(size: Resolution, canvas: Resolution) -> Resolution:
    """The picture's size on its canvas: as large as fits, its shape kept, fractions rounded up."""
    (width, height), (across, down) = size, canvas
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down
