"""Computes the number of tiles and the number of tokens for an image of a given size.

This module does not import torch, because the prompt builder also uses it.

    fit                tiles                          tokens
    pad, crop, squash  one square image               tokens_per_tile
    anyres             base view, then the grid       see below
                       tiles in row-major order
    hd                 same as anyres                 same as spatial_unpad, but only all-padding patches are
                                                      removed

For ``anyres`` and ``hd``, tiles must be created as follows, after the EXIF orientation of the image has been
applied:

1.  Squash the whole image to side x side pixels, without padding. This is the first tile, the base view.
2.  Select the canvas size in ``grid`` that preserves the most pixels of the image (`best_resolution`).
3.  Resize the image to fit on the canvas, preserving its aspect ratio (`size_on_canvas`). Center it, with its
    top left corner at floor((canvas - image) / 2). The remaining pixels of the canvas are black.
4.  Split the canvas into tiles of side x side pixels, in row-major order.

The features of the tiles are merged in one of three ways, named as in the original (``mm_patch_merge_type``):

    merge              tokens
    flat               the patches of the base view and of each tile, tile by tile
    spatial            the patches of the base view, then those of the grid, row by row
    spatial_unpad      the patches of the base view, then those of the grid without padding, row by row, with
                       one newline token after each row. A lone tile is also followed by a newline token.

LLaVA-1.6 uses ``spatial_unpad``. LLaVA-OneVision ("anyres_max_9") also reduces the patches of a large grid to
about ``max_tiles`` tiles, by bilinear interpolation, before newlines are added. If there are several images,
it encodes each one as a single padded tile.

``hd`` implements LLaVA-1.5-HD as described in the paper (arXiv 2310.03744, appendix A.1), with up to six
tiles in the grid. It drops a feature only if its patch consists entirely of padding. This mode is
experimental: no checkpoint for comparison has been published, and the paper does not specify how to create
the global view.
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
    "Merge",
    "Resolution",
    "best_resolution",
    "size_on_canvas",
]

OneTileFit = Literal["pad", "crop", "squash"]
Fit = Literal["pad", "crop", "squash", "anyres", "hd"]
Merge = Literal["flat", "spatial", "spatial_unpad"]
Resolution = tuple[int, int]  # (width, height) in pixels

# The grids from the LLaVA-1.5-HD paper, as (columns, rows).
HD_SHAPES = (*((n, 1) for n in range(1, 7)), *((1, n) for n in range(2, 7)), (2, 2), (2, 3), (3, 2))

_MAX_TILES = 256  # per image; published models use up to 36
_MAX_SHOWN = 50  # resolutions in an error message
_MAX_EXCESS = 1.1  # a grid is reduced only if it is larger than max_tiles by more than this factor per side


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How the tiles of one image are mapped to tokens.

    The grid consists of ``rows`` x ``columns`` tiles. Its patch rows [top, bottom) and patch columns [left,
    right) are encoded; all other patches are padding. If ``reduced`` is set, they are interpolated to this
    number of rows and columns. Without a grid, all tokens are patches of the tiles, tile by tile, and these
    fields are 0. If ``has_newlines`` is true, a newline token follows each row, or the only tile.
    """

    num_tiles: int
    num_tokens: int
    columns: int = 0
    rows: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    reduced: tuple[int, int] | None = None  # (rows, columns) of patches
    has_newlines: bool = False


@dataclass(frozen=True)
class ImageLayout:
    """The rules that a model uses to split images into tiles and to merge the features of the tiles.

    ``side`` is the side length of a tile in pixels. ``grid`` contains the possible canvas sizes.
    ``max_tiles`` is the number of tiles to which a large grid is reduced, or None. If ``rounds_sizes`` is
    true, sizes are rounded to seven decimal places before they are rounded down to whole patches, as in
    transformers. The original code skips the first rounding. Its results differ if a floating-point value is
    slightly below a whole number.

    Raises ValueError if a canvas size is not a multiple of the tile size, or if there is a grid and
    ``tokens_per_tile`` is not a square number.
    """

    side: int
    tokens_per_tile: int
    fit: Fit = "pad"
    grid: tuple[Resolution, ...] = ()
    merge: Merge = "spatial_unpad"
    max_tiles: int | None = None
    rounds_sizes: bool = True

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

    @property
    def has_newlines(self) -> bool:
        """Whether a learned newline embedding follows each row of patches."""
        return self.has_grid and self.merge == "spatial_unpad"

    @property
    def splits_several_images(self) -> bool:
        """Whether images are split into tiles even if the request contains several of them.

        LLaVA-OneVision was trained on several images as single tiles.
        """
        return self.max_tiles is None

    @property
    def single_tile_fit(self) -> OneTileFit:
        """How to make an image square if it is not split although the layout has a grid."""
        return "squash" if self.splits_several_images else "pad"

    @property
    def max_tokens(self) -> int:
        """An upper bound of the number of tokens for an image."""
        if not self.has_grid:
            return self.tokens_per_tile
        num_tiles = max(width * height for width, height in self.grid) // self.side**2
        num_rows = max(height for _, height in self.grid) // self.side * self.patches_per_side
        if self.max_tiles is not None and self.has_newlines:
            num_tiles = min(num_tiles, math.ceil(_MAX_EXCESS**2 * self.max_tiles))
        return (1 + num_tiles) * self.tokens_per_tile + num_rows * self.has_newlines

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the plan for an image whose original size in pixels is ``width`` x ``height``.

        For a size of 0 x 0, the plan contains only one tile. Raises ValueError for any other size with a
        side below 1 if the layout has a grid.
        """
        if not self.has_grid or width == height == 0:
            num_tokens = self.tokens_per_tile + self.has_newlines
            return ImagePlan(num_tiles=1, num_tokens=num_tokens, has_newlines=self.has_newlines)
        if width < 1 or height < 1:
            raise ValueError(f"The image size is {width}x{height} pixels; both sides must be at least 1.")
        canvas = best_resolution((width, height), self.grid)
        columns, rows = canvas[0] // self.side, canvas[1] // self.side
        num_tiles = 1 + columns * rows
        if self.merge == "flat":
            return ImagePlan(num_tiles, num_tiles * self.tokens_per_tile)
        (left, right), (top, bottom) = self._shown_patches((width, height), canvas)
        reduced = self._reduced(bottom - top, right - left)
        num_rows, num_columns = reduced or (bottom - top, right - left)
        return ImagePlan(
            num_tiles,
            self.tokens_per_tile + num_rows * (num_columns + self.has_newlines),
            columns,
            rows,
            top,
            bottom,
            left,
            right,
            reduced,
            self.has_newlines,
        )

    def num_tokens(self, width: int, height: int) -> int:
        """Return the number of prompt tokens for an image whose original size is ``width`` x ``height``."""
        return self.plan(width, height).num_tokens

    def _shown_patches(self, size: Resolution, canvas: Resolution) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the ranges of patch columns and patch rows of the canvas that are encoded."""
        if self.merge == "spatial":
            across, down = (n // self.side * self.patches_per_side for n in canvas)
            return (0, across), (0, down)
        return self._unpad_hd(size, canvas) if self.fit == "hd" else self._unpad_anyres(size, canvas)

    def _reduced(self, num_rows: int, num_columns: int) -> tuple[int, int] | None:
        """Return the numbers of rows and columns to which a large grid is reduced, or None."""
        if self.max_tiles is None or not self.has_newlines:
            return None
        excess = math.sqrt(num_rows * num_columns / (self.max_tiles * self.patches_per_side**2))
        if excess <= _MAX_EXCESS:
            return None
        return max(1, int(num_rows // excess)), max(1, int(num_columns // excess))

    def _unpad_anyres(self, size: Resolution, canvas: Resolution) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the ranges of patch columns and patch rows that remain after the padding is removed.

        Half of the padding, rounded down to whole patches, is removed from each side.
        """
        width, height = size
        across, down = (n // self.side * self.patches_per_side for n in canvas)
        if width / height > across / down:
            padding = (down - self._whole(height * (across / width))) // 2
            return (0, across), (padding, down - padding)
        padding = (across - self._whole(width * (down / height))) // 2
        return (padding, across - padding), (0, down)

    def _whole(self, num_patches: float) -> int:
        return int(round(num_patches, 7) if self.rounds_sizes else num_patches)

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
