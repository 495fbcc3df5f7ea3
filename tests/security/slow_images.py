"""Small image files that require much more CPU time than other images of the same size."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from tests.server.image_files import encoded

__all__ = ["slow_bmp", "slow_jpeg", "slow_png", "slow_tiff"]


def slow_jpeg(width: int, height: int, *, num_scans: int, gray: int = 100) -> bytes:
    """Return a progressive JPEG that refines all pixels in each scan. It is larger by 50 bytes per scan."""
    image = Image.new("L", (width, height), gray)
    file = encoded(image, "JPEG", progressive=True, quality=50)
    last_scan = file[file.rfind(b"\xff\xc4") : -2]  # with its Huffman table
    num_missing = num_scans - file.count(b"\xff\xda")
    return file[:-2] + num_missing * last_scan + file[-2:]


def slow_png(num_chunks: int) -> bytes:
    """Return an image of 8 x 8 pixels with a number of empty text chunks."""

    def chunk(name: bytes, content: bytes = b"") -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(72)))
    return b"\x89PNG\r\n\x1a\n" + header + num_chunks * chunk(b"tEXt") + pixels + chunk(b"IEND")


def slow_tiff(num_tiles: int) -> bytes:
    """Return an image of 2 x ``num_tiles`` pixels whose tiles are 2 x 1 pixels."""
    offsets_at = 8 + 2 + 10 * 12 + 4
    pixels_at = offsets_at + 8 * num_tiles
    tags = [
        (256, 4, 1, 2),
        (257, 4, 1, num_tiles),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, 2),
        (323, 4, 1, 1),
        (324, 4, num_tiles, offsets_at),
        (325, 4, num_tiles, offsets_at + 4 * num_tiles),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    offsets = struct.pack("<I", pixels_at) * num_tiles + struct.pack("<I", 2) * num_tiles
    return b"II*\0" + struct.pack("<I", 8) + directory + offsets + bytes(2)


def slow_bmp(width: int, height: int) -> bytes:
    """Return an image compressed with run-length encoding whose runs are one pixel long."""
    palette, runs = bytes(1024), b"\1\0" * (width * height)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    pixels_at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", pixels_at + len(runs), 0, 0, pixels_at) + info + palette + runs
