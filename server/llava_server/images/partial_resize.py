"""Computes some rows of a vertically resized canvas, bit-identical to the rows that PIL would compute.

PIL can also resize a part of an image, but it stores the edges of the part in single precision, which changes
some pixels. This module repeats PIL's computation: Keys' bicubic filter (a = -0.5), widened if the image is
reduced, with weights in double precision that are normalized and then rounded to 22 fractional bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageMath

__all__ = ["Canvas", "resize_rows"]

_FRACTION_BITS = 22
_RADIUS = 2.0  # of the filter, in source pixels


@dataclass(frozen=True)
class Canvas:
    """An area of ``height`` rows with one color. An image of the same width covers the rows from ``top``."""

    height: int
    top: int = 0
    color: tuple[int, int, int] = (0, 0, 0)


def resize_rows(image: Image.Image, canvas: Canvas, height: int, rows: range) -> Image.Image:
    """Return the ``rows`` of a canvas with an RGB image that is resized vertically to ``height`` rows."""
    bands = zip(image.split(), canvas.color, strict=True)
    return Image.merge("RGB", [_resize_band(band, color, canvas, height, rows) for band, color in bands])


def _resize_band(band: Image.Image, color: int, canvas: Canvas, height: int, rows: range) -> Image.Image:
    result = Image.new("L", (band.width, len(rows)))
    source: dict[int, Image.Image] = {}
    for row in rows:
        first, weights = _weights(row, canvas.height / height, canvas.height)
        inside = {y: weight for y, weight in enumerate(weights, first - canvas.top) if 0 <= y < band.height}
        source = {y: source[y] if y in source else _row(band, y) for y in inside}
        outside = sum(weights) - sum(inside.values())
        half = 1 << (_FRACTION_BITS - 1)  # rounds to nearest
        total = Image.new("I", (band.width, 1), color * outside + half)
        for y, weight in inside.items():
            total = _add(total, source[y], weight)
        result.paste(_whole_part(total), (0, row - rows.start))
    return result


def _row(band: Image.Image, y: int) -> Image.Image:
    return band.crop((0, y, band.width, y + 1)).convert("I")


def _add(total: Image.Image, row: Image.Image, weight: int) -> Image.Image:
    added: Image.Image = ImageMath.lambda_eval(lambda args: args["a"] + args["b"] * weight, a=total, b=row)
    return added


def _whole_part(total: Image.Image) -> Image.Image:
    """Drop the fraction and clip the values to 8 bits."""
    whole: Image.Image = ImageMath.lambda_eval(lambda args: args["a"] >> _FRACTION_BITS, a=total)
    return whole.convert("L")


def _weights(row: int, scale: float, num_source_rows: int) -> tuple[int, list[int]]:
    """Return the first source row that contributes to a row, and the fixed-point weights from there on.

    ``scale`` is the height of a row in source rows.
    """
    width = max(scale, 1.0)
    center = (row + 0.5) * scale
    first = max(0, int(center - _RADIUS * width + 0.5))
    end = min(num_source_rows, int(center + _RADIUS * width + 0.5))
    weights = [_bicubic((y - center + 0.5) * (1.0 / width)) for y in range(first, end)]
    total = 0.0
    for weight in weights:  # in order, without the compensated summation of sum()
        total += weight
    return first, [_to_fixed_point(weight / total) for weight in weights]


def _bicubic(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < _RADIUS else 0.0


def _to_fixed_point(weight: float) -> int:
    return int(math.copysign(0.5, weight) + weight * (1 << _FRACTION_BITS))
