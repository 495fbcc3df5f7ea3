"""Pictures in every form a caller may hold, as the URL that a chat message carries.

A path, a ``pathlib.Path``, the bytes of a picture file, a PIL image, or a string that begins with ``data:``,
``http://`` or ``https://``. The kind of a file is told from its first bytes, never from its name. URLs go to
the server as they are: whether it fetches foreign ones is the server's rule.
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
)
_PNG_MODES = frozenset(
    {"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"}
)  # what Pillow writes as PNG unchanged


@runtime_checkable
class PillowImage(Protocol):
    """As much of ``PIL.Image.Image`` as is needed, so that Pillow is no dependency."""

    @property
    def mode(self) -> str: ...
    def convert(self, mode: str) -> Any: ...
    def save(self, fp: Any, format: str | None = None, **params: Any) -> None: ...
    def getexif(self) -> Any: ...


ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | PillowImage"
Images: TypeAlias = "ImageInput | Sequence[ImageInput] | None"


def image_parts(images: Images) -> list[dict[str, Any]]:
    """The ``image_url`` parts of a message, for one picture, several or none.

    Raises ImageError: with what is wrong with which picture; no part of the list is used then.
    """
    if images is None:
        return []
    several = images if isinstance(images, (list, tuple)) else [cast(ImageInput, images)]
    return [{"type": "image_url", "image_url": {"url": image_url(image)}} for image in several]


def image_url(image: ImageInput) -> str:
    """``image`` as a URL: itself if it is one, else a ``data:`` URL with the bytes. Raises ImageError."""
    if isinstance(image, str) and image.lower().startswith(_URL_PREFIXES):
        return image
    if isinstance(image, (str, os.PathLike)):
        return _data_url(_read(image), name=os.fspath(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _data_url(bytes(image), name=f"a picture of {len(bytes(image))} bytes")
    if isinstance(image, PillowImage):
        return _data_url(_encoded(image), name="a PIL image")
    raise ImageError(
        f"a picture of type {type(image).__name__} is not known: "
        "give a path, the bytes of a picture file, a PIL image or a URL"
    )


def media_type(data: bytes) -> str | None:
    """The media type that a picture file's first bytes tell; None if they tell none."""
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
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ImageError(f"cannot read the picture {os.fspath(path)!r}: {reason}") from exc


def _data_url(data: bytes, *, name: str) -> str:
    if not data:
        raise ImageError(f"{name} is empty: give the bytes of a picture file")
    kind = media_type(data)
    if kind is None:
        raise ImageError(
            f"{name} is not a picture file, it begins with {data[:8]!r}: "
            "use PNG, JPEG, WebP, GIF, BMP or TIFF"
        )
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(image: PillowImage) -> bytes:
    """A lossless file with the orientation kept, so that the server turns it as it would the original."""
    buffer = io.BytesIO()
    writable = image if image.mode in _PNG_MODES else image.convert("RGB")
    writable.save(buffer, format="PNG", exif=image.getexif())
    return buffer.getvalue()
