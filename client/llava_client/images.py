"""Converts images into the URLs used in chat messages.

An image is a path (a string or ``pathlib.Path``), the bytes of an image file, a PIL image, or a URL that
begins with ``data:``, ``http://`` or ``https://``. The file type is detected from the first bytes, never from
the name. URLs are sent unchanged, and the server decides whether to fetch them.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from llava_client.errors import ImageError

__all__ = ["ImageInput", "Images", "PillowImage", "image_parts", "image_url", "media_type"]

_URL_PREFIXES = ("data:", "http://", "https://")
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),  # BigTIFF
    (b"MM\x00+", "image/tiff"),
)
# Modes that Pillow can write as PNG without conversion.
_PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})
# Other modes with an alpha channel, and modes that PNG can store.
_TRANSPARENT_MODES = {"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}


@runtime_checkable
class PillowImage(Protocol):
    """The part of the ``PIL.Image.Image`` interface that this module uses.

    This protocol avoids a dependency on Pillow.
    """

    @property
    def mode(self) -> str: ...
    def convert(self, mode: str) -> Any: ...
    def save(self, fp: Any, format: str | None = None, **params: Any) -> None: ...
    def getexif(self) -> Any: ...


ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | PillowImage"
Images: TypeAlias = "ImageInput | Sequence[ImageInput] | None"


def image_parts(images: Images) -> list[dict[str, Any]]:
    """Return one ``image_url`` message part for each image. Raises ImageError if an image is invalid."""
    if images is None:
        return []
    several = images if isinstance(images, (list, tuple)) else [cast(ImageInput, images)]
    return [{"type": "image_url", "image_url": {"url": image_url(image)}} for image in several]


def image_url(image: ImageInput) -> str:
    """Return ``image`` unchanged if it is a URL. Otherwise, return a ``data:`` URL that contains its bytes.

    Raises ImageError if the image is invalid.
    """
    if isinstance(image, str) and image.lower().startswith(_URL_PREFIXES):
        return image
    if isinstance(image, (str, os.PathLike)):
        return _data_url(_read(image), name=f"Image {os.fspath(image)!r}")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _data_url(bytes(image), name=f"Image of {len(bytes(image))} bytes")
    if isinstance(image, PillowImage):
        return _data_url(_encoded(image), name="PIL image")
    type_name = type(image).__name__
    raise ImageError(
        f"Images of type {type_name} are not supported. Pass a path, the bytes of an image file, a PIL image "
        "or a URL."
    )


def media_type(data: bytes) -> str | None:
    """Return the media type detected from the first bytes of a file.

    Return None if the type is not recognized.
    """
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic"
    return None


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as exc:  # ValueError: the name contains a NUL character
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        name = os.fspath(path)
        raise ImageError(f"Cannot read image {name!r}: {reason}.") from exc


def _data_url(data: bytes, *, name: str) -> str:
    if not data:
        raise ImageError(f"{name} is empty. Pass the bytes of an image file.")
    kind = media_type(data)
    if kind is None:
        first_bytes = data[:8]
        raise ImageError(
            f"{name} is not an image file; it begins with {first_bytes!r}. "
            "Use PNG, JPEG, WebP, GIF, BMP or TIFF."
        )
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(image: PillowImage) -> bytes:
    """Return the image as a PNG file. Keep its EXIF data so that the server can rotate the image."""
    buffer = io.BytesIO()
    is_writable = image.mode in _PNG_MODES
    writable = image if is_writable else image.convert(_TRANSPARENT_MODES.get(image.mode, "RGB"))
    writable.save(buffer, format="PNG", exif=image.getexif())
    return buffer.getvalue()
