"""Computes some rows of a vertically resized image, bit-identical to the rows that PIL would compute.

PIL can also resize a part of an image, but it stores the edges of the part in single precision, which changes
some pixels. This module repeats PIL's computation: Keys' bicubic filter (a = -0.5), widened if the image is
reduced, with weights in double precision that are normalized and then rounded to 22 fractional bits.
"""

from __future__ import annotations

import math

from PIL import Image

__all__ = ["resize_rows"]

_FRACTION_BITS = 22
_RADIUS = 2.0  # of the filter, in source pixels


def resize_rows(image: Image.Image, height: int, rows: range) -> Image.Image:
    """Return the ``rows`` of an RGB image that is resized to ``height`` rows. Its width does not change."""
    source: dict[int, bytes] = {}
    result = bytearray()
    for row in rows:
        first, weights = _weights(row, image.height / height, image.height)
        for y in range(first, first + len(weights)):
            if y not in source:
                source[y] = image.crop((0, y, image.width, y + 1)).tobytes()
        columns = zip(*(source[first + i] for i in range(len(weights))), strict=True)
        result += bytes(_weighted_sum(column, weights) for column in columns)
    return Image.frombytes("RGB", (image.width, len(rows)), bytes(result))


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


def _weighted_sum(values: tuple[int, ...], weights: list[int]) -> int:
    total = 1 << (_FRACTION_BITS - 1)  # rounds to nearest
    for value, weight in zip(values, weights, strict=True):
        total += value * weight
    return min(max(total >> _FRACTION_BITS, 0), 255)
