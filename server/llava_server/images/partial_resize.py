"""Computes some rows of a vertically resized image, bit-identical to the rows that PIL would compute.

PIL can also resize a part of an image, but it stores the edges of the part in single precision, which changes
some pixels. This module repeats PIL's computation: Keys' bicubic filter (a = -0.5), widened if the image is
reduced, with weights in double precision that are normalized and then rounded to 22 fractional bits.
"""

from __future__ import annotations

import math

from PIL import Image, ImageMath

__all__ = ["resize_rows"]

_FRACTION_BITS = 22
_RADIUS = 2.0  # of the filter, in source pixels


def resize_rows(image: Image.Image, height: int, rows: range) -> Image.Image:
    """Return the ``rows`` of an RGB image that is resized to ``height`` rows. Its width does not change."""
    return Image.merge("RGB", [_resize_band(band, height, rows) for band in image.split()])


def _resize_band(band: Image.Image, height: int, rows: range) -> Image.Image:
    result = Image.new("L", (band.width, len(rows)))
    for row in rows:
        first, weights = _weights(row, band.height / height, band.height)
        total = Image.new("I", (band.width, 1), 1 << (_FRACTION_BITS - 1))  # rounds to nearest
        for y, weight in enumerate(weights, first):
            total = _add(total, _row(band, y), weight)
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
