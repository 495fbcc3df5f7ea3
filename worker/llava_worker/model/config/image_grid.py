"""Tiles and tokens of an image, from its size alone; without torch, because the prompt builder uses it, too.

    fit                tiles of an image                  tokens
    pad, crop, squash  the image, square                  tokens_per_tile
    anyres             base view, then the grid row by    base view, then the grid's rows of patches joined,
                       row                                padding removed, one newline after each row
    hd                 the same tiles                     the same, with padding removed by whole patches

Tiles of ``anyres`` and ``hd`` for an upright image of ``width`` x ``height`` must be made as follows:

1.  The base view is first: the whole image squashed to side x side, without padding.
2.  The canvas is the resolution of ``grid`` that keeps most of the image's pixels (`best_resolution`).
3.  The image is resized to the canvas keeping its aspect ratio (`fitted_size`) and pasted into its middle, at
    floor((canvas - image) / 2); the rest is black.
4.  The canvas is divided into tiles of side x side, row by row from the upper left.

The rules are LLaVA-1.6's. ``hd`` is LLaVA-1.5-HD as its paper describes it (arXiv 2310.03744, appendix A.1):
up to six tiles, and a feature is dropped only if its patch shows nothing but padding. It is experimental: no
checkpoint was published to compare with, and the paper leaves open how the global view is made.
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

# The grids of LLaVA-1.5-HD's paper, (columns, rows).
HD_SHAPES = (*((n, 1) for n in range(1, 7)), *((1, n) for n in range(2, 7)), (2, 2), (2, 3), (3, 2))


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How one image's tiles become tokens.

    The grid has ``rows`` x ``columns`` tiles; its patches [top, bottom) x [left, right) show the image.
    Without a grid ``num_tiles`` is 1 and the grid's numbers are 0.
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
    """How one model divides images into tiles. ``grid`` has the possible canvases, (width, height) in pixels.

    Raises ValueError for an impossible layout: a canvas that is not a multiple of the tile, or a grid of
    tiles whose patches are not a square.
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
        """Plan an image of that original size in pixels; 0 x 0 is an image of the base view only.

        Raises ValueError if a grid needs a size.
        """
        if not self.has_grid or width == height == 0:
            return ImagePlan(num_tiles=1, num_tokens=self.tokens_per_tile)
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width}x{height} pixels")
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
        """Return the tokens in a prompt of an image of that original size."""
        return self.plan(width, height).num_tokens

    def _unpad_anyres(self, size: Resolution, canvas: Resolution) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return columns and rows of patches without padding: half of it on either side, in whole patches.

        transformers rounds to seven decimals before it rounds down to whole patches; the original does not.
        They differ only where floating point falls just short of a whole number.
        """
        width, height = size
        across, down = (n // self.side * self.patches_per_side for n in canvas)
        if width / height > across / down:
            padding = (down - int(round(height * (across / width), 7))) // 2
            return (0, across), (padding, down - padding)
        padding = (across - int(round(width * (down / height), 7))) // 2
        return (padding, across - padding), (0, down)

    def _unpad_hd(self, size: Resolution, canvas: Resolution) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the columns and rows of patches with at least one pixel of the image."""
        patch = self.side / self.patches_per_side
        spans = []
        for total, inner in zip(canvas, fitted_size(size, canvas), strict=True):
            start = (total - inner) // 2
            spans.append((math.floor(start / patch), math.ceil((start + inner) / patch)))
        return spans[0], spans[1]


def best_resolution(size: Resolution, grid: tuple[Resolution, ...]) -> Resolution:
    """Return the canvas that keeps most pixels of the image; of equals the least padded, then the first."""
    width, height = size

    def score(canvas: Resolution) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(grid, key=score)


def fitted_size(size: Resolution, canvas: Resolution) -> Resolution:
    """Return the image's size on its canvas: as large as fits, aspect ratio kept, fractions rounded up."""
    (width, height), (across, down) = size, canvas
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down
