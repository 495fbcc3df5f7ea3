"""Image preprocessing that is bit-identical to the original LLaVA.

- "pad": LLaVA-1.5's ``expand2square`` and CLIP's resize
- "crop": CLIP's resize of the shorter side, followed by a center crop (``CLIPImageProcessor``, PIL path)
- "squash": SigLIP's resize of both sides (``SiglipImageProcessor``, PIL path)
- "anyres": LLaVA-1.6's ``process_anyres_image``
- "hd": the same tiling as "anyres", for LLaVA-1.5-HD (experimental)
- "rgb": the whole image, which is resized only if it is too large, for models with their own image processor

All modes resample with PIL's bicubic filter, first horizontally, then vertically, with 8-bit intermediate
values. Pillow up to version 12 always used this order, so the original LLaVA did, too. Pillow 13 resizes some
tall images vertically first, which changes a quarter of their pixel values slightly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from llava_server.images.partial_resize import Canvas, resize_rows

__all__ = ["ResizeMode", "apply_orientation", "resize"]

ResizeMode = Literal["pad", "crop", "squash", "anyres", "hd", "rgb"]

_STRIP_ROWS = 256
_TALL, _TALL_RATIO = 4_096, 8  # pad taller images without resizing the background
_MAX_RATIO = 100  # crop longer images without resizing all of their length
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate or flip the image as its EXIF orientation (1 to 8) specifies. Other values are ignored."""
    method = _TO_UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def resize(
    image: Image.Image,
    *,
    side: int,
    mode: ResizeMode,
    background: tuple[int, int, int],
    grid: Sequence[tuple[int, int]] = (),
) -> Image.Image:
    """Return the tiles of an RGB image, each ``side`` x ``side`` pixels, stacked vertically.

    "pad", "crop" and "squash" produce one tile. The other modes select one of the canvas sizes in ``grid``.
    Each size is (width, height) in pixels, and both dimensions are multiples of ``side``.
    """
    if mode == "pad":
        return _pad(image, side, background)
    if mode == "crop":
        return _crop(image, side)
    if mode == "squash":
        return _squash(image, side)
    if mode == "rgb":
        return _shrink(image, side)
    return _split_into_tiles(image, side, grid)


def _pad(image: Image.Image, side: int, background: tuple[int, int, int]) -> Image.Image:
    """Center the image on a square canvas and resize the canvas.

    The side of the canvas equals the longer side of the image. Offsets are rounded down. Strips of rows are
    resized horizontally one after another. The whole canvas would need a gigabyte of memory for an image of
    16384 x 2000 pixels.
    """
    width, height = image.size
    long = max(width, height)
    left, top = (long - width) // 2, (long - height) // 2
    narrow = Image.new("RGB", (side, long), background)
    if height >= max(_TALL, _TALL_RATIO * width):
        narrow.paste(*_resize_tall(image, side, background))
        return _resize(narrow, (side, side))
    for y in range(0, height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, height - y)
        strip = Image.new("RGB", (long, rows), background)
        strip.paste(image.crop((0, y, width, y + rows)), (left, 0))
        narrow.paste(_resize(strip, (side, rows)), (0, top + y))
    return _resize(narrow, (side, side))


def _resize_tall(
    image: Image.Image, side: int, background: tuple[int, int, int]
) -> tuple[Image.Image, tuple[int, int]]:
    """Resize a tall image on a square canvas horizontally to ``side`` columns.

    Return the columns that contain a part of the image, and their position. Resizing all of the background
    would take seconds.
    """
    width, height = image.size
    left, scale = (height - width) // 2, height / side
    # The filter has a radius of two columns. One more column on each side allows for rounding.
    columns = range(max(0, int(left / scale) - 3), min(side, math.ceil((left + width) / scale) + 3))
    canvas = Canvas(height, left, background)
    part = resize_rows(image.transpose(Image.Transpose.TRANSPOSE), canvas, side, columns)
    return part.transpose(Image.Transpose.TRANSPOSE), (columns.start, 0)


def _crop(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to ``side`` and crop the center.

    The resized image of a very long one would need gigabytes of memory, so only its center is computed.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    resized_long = int(side * long / short)  # CLIPImageProcessor truncates here
    first = (resized_long - side) // 2
    if long <= _MAX_RATIO * short:
        size = (side, resized_long) if width <= height else (resized_long, side)
        left, top = (0, first) if width <= height else (first, 0)
        return _resize(image, size).crop((left, top, left + side, top + side))
    center = range(first, first + side)
    if width < height:
        return resize_rows(_resize(image, (side, height)), Canvas(height), resized_long, center)
    columns = resize_rows(image.transpose(Image.Transpose.TRANSPOSE), Canvas(width), resized_long, center)
    return _resize(columns.transpose(Image.Transpose.TRANSPOSE), (side, side))


def _squash(image: Image.Image, side: int) -> Image.Image:
    return _resize(image, (side, side))


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Resize the image, preserving its aspect ratio, so that its longer side is at most ``side``."""
    long = max(image.size)
    if long <= side:
        return image
    width, height = (max(1, round(size * side / long)) for size in image.size)
    return _resize(image, (width, height))


def _split_into_tiles(image: Image.Image, side: int, grid: Sequence[tuple[int, int]]) -> Image.Image:
    """Return the image resized to one tile, followed by the tiles of the best canvas in row-major order."""
    canvas = _fit_on_canvas(image, _best_canvas(image.size, grid))
    columns, rows = canvas.width // side, canvas.height // side
    tiles = Image.new("RGB", (side, side * (1 + columns * rows)))
    tiles.paste(_squash(image, side), (0, 0))
    for number, (row, column) in enumerate(itertools.product(range(rows), range(columns)), start=1):
        left, top = column * side, row * side
        tiles.paste(canvas.crop((left, top, left + side, top + side)), (0, number * side))
    return tiles


def _fit_on_canvas(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale the image to fit the canvas, preserving its aspect ratio, and center it on a black background."""
    x_scale, y_scale = size[0] / image.width, size[1] / image.height
    if x_scale < y_scale:
        scaled = (size[0], min(math.ceil(image.height * x_scale), size[1]))
    else:
        scaled = (min(math.ceil(image.width * y_scale), size[0]), size[1])
    canvas = Image.new("RGB", size, (0, 0, 0))
    left, top = (size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2
    canvas.paste(_resize(image, scaled), (left, top))
    return canvas


def _best_canvas(size: tuple[int, int], grid: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the canvas that preserves the most pixels of the image.

    If several canvases preserve the same number of pixels, select the smallest one. If several of these have
    the same size, select the first one.
    """
    width, height = size

    def score(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, -canvas[0] * canvas[1]

    return max(grid, key=score)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    narrow = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
    return narrow.resize(size, Image.Resampling.BICUBIC)
