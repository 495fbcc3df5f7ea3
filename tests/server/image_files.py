"""Valid and broken image files for tests, and request parts that contain them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image

__all__ = ["data_url", "encoded", "part", "png_claiming", "scene"]


def scene(width: int = 40, height: int = 20) -> Image.Image:
    """Return an image that looks different in every orientation: left red, right blue, top white."""
    image = Image.new("RGB", (width, height), (200, 0, 0))
    image.paste((0, 0, 200), (width // 2, 0, width, height))
    image.paste((255, 255, 255), (0, 0, width, max(1, height // 10)))
    return image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def data_url(raw: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(raw).decode()}"


def part(url: bytes | str) -> dict[str, Any]:
    """Return an image_url part for a URL or the bytes of a file."""
    return {"type": "image_url", "image_url": {"url": url if isinstance(url, str) else data_url(url)}}


def png_claiming(width: int, height: int, *, rows: int = 0) -> bytes:
    """Return a small PNG with a fake size in its header. The file contains only ``rows`` rows of zeros."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    compressor, row = zlib.compressobj(9), bytes(width * 3 + 1 if rows else 0)
    pixels = b"".join(compressor.compress(row) for _ in range(rows)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
