"""Generates PNG images without an imaging library. Each seed produces a different image.

All images share the same pixels, which are indices into a palette (color type 3 in the PNG specification,
https://www.w3.org/TR/png/). Only the palette differs. The pixels are therefore compressed only once, and each
additional image costs almost nothing even though all of its colors are different.
"""

from __future__ import annotations

import math
import random
import struct
import zlib

__all__ = ["ImageGenerator"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLORS = 256
_NUM_STOPS = 9  # a palette is interpolated between this many random colors


class ImageGenerator:
    """Generates PNG files of the same width and height. A given seed always produces the same file."""

    def __init__(self, width: int, height: int) -> None:  # in pixels
        self._header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        self._pattern = _chunk(b"IDAT", zlib.compress(_rows(width, height), 6)) + _chunk(b"IEND", b"")

    def png(self, seed: int) -> bytes:
        return _SIGNATURE + self._header + _chunk(b"PLTE", _palette(seed)) + self._pattern


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(width: int, height: int) -> bytes:
    """Return the rows of a noisy wave pattern. The noise makes the file about as large as a photo.

    Each row uses PNG filter type 0 (no filter).
    """
    wave = bytes(int(60 * math.sin(x / 37) + 40 * math.sin(x / 11) + x / 5) % _COLORS for x in range(width))
    grain = random.Random(0)
    rows = []
    for y in range(height):
        shift = int(70 * math.sin(y / 29) + 30 * math.sin(y / 7) + y / 4)
        row = wave.translate(bytes((index + shift) % _COLORS for index in range(_COLORS)))
        mask = int.from_bytes(b"\x01" * width, "big")
        noisy = int.from_bytes(row, "big") ^ (grain.getrandbits(8 * width) & mask)
        rows.append(b"\0" + noisy.to_bytes(width, "big"))
    return b"".join(rows)


def _palette(seed: int) -> bytes:
    """Return 256 RGB colors, interpolated between random colors."""
    rng = random.Random(seed)
    stops = [[rng.randrange(_COLORS) for _ in range(3)] for _ in range(_NUM_STOPS)]
    colors = bytearray()
    for index in range(_COLORS):
        position = index / _COLORS * (_NUM_STOPS - 1)
        before, share = int(position), position % 1
        pairs = zip(stops[before], stops[before + 1], strict=True)
        colors += bytes(round(a + (b - a) * share) for a, b in pairs)
    return bytes(colors)
