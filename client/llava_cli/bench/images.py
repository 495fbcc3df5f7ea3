"""Generate PNG files without an imaging library, any number of them and no two alike.

The pixels are indices into a palette (the PNG specification's colour type 3, https://www.w3.org/TR/png/), and
only the palette differs between images. So the pattern is compressed once and a further image costs almost
nothing, although all of its pixels have other colours.
"""

from __future__ import annotations

import math
import random
import struct
import zlib

__all__ = ["ImageGenerator"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = 256
_NUM_STOPS = 9  # colours between which a palette runs


class ImageGenerator:
    """Generates PNG files of one size. The same seed gives the same file."""

    def __init__(self, width: int, height: int) -> None:  # in pixels
        self._header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        self._pattern = _chunk(b"IDAT", zlib.compress(_rows(width, height), 6)) + _chunk(b"IEND", b"")

    def png(self, seed: int) -> bytes:
        return _SIGNATURE + self._header + _chunk(b"PLTE", _palette(seed)) + self._pattern


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(width: int, height: int) -> bytes:
    """Waves with grain, so that a file is as large as a photo's. Each row begins with its filter, 0."""
    wave = bytes(int(60 * math.sin(x / 37) + 40 * math.sin(x / 11) + x / 5) % _COLOURS for x in range(width))
    grain = random.Random(0)
    rows = []
    for y in range(height):
        shift = int(70 * math.sin(y / 29) + 30 * math.sin(y / 7) + y / 4)
        row = wave.translate(bytes((index + shift) % _COLOURS for index in range(_COLOURS)))
        mask = int.from_bytes(b"\x01" * width, "big")
        noisy = int.from_bytes(row, "big") ^ (grain.getrandbits(8 * width) & mask)
        rows.append(b"\0" + noisy.to_bytes(width, "big"))
    return b"".join(rows)


def _palette(seed: int) -> bytes:
    """256 colours that run smoothly from one random colour to the next."""
    rng = random.Random(seed)
    stops = [[rng.randrange(_COLOURS) for _ in range(3)] for _ in range(_NUM_STOPS)]
    colours = bytearray()
    for index in range(_COLOURS):
        position = index / _COLOURS * (_NUM_STOPS - 1)
        before, share = int(position), position % 1
        pairs = zip(stops[before], stops[before + 1], strict=True)
        colours += bytes(round(a + (b - a) * share) for a, b in pairs)
    return bytes(colours)
