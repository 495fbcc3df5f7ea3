"""Finds the images in a folder and reads them.

- Subfolders are searched. Links to files are followed. Links to folders are not: they can form cycles.
- Hidden files and folders, whose names begin with a dot, are skipped.
- A file is an image if its extension is in ``EXTENSIONS``, or if it has no extension and its first bytes are
  those of an image.
- Devices, sockets and named pipes are skipped. Broken links are listed, so that they are reported as failed.

An image is identified by its path relative to the folder, with forward slashes. Bytes of the path that are
not valid UTF-8 are represented by lone surrogates, as Python does for all paths.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llava_client.errors import ConfigurationError, ImageError
from llava_client.images import media_type

__all__ = ["EXTENSIONS", "MAX_IMAGE_BYTES", "ImageContent", "ImageFile", "find_images"]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# The highest body limit that a server can have (LLAVA_MAX_BODY_MB) is 128 MiB, and base64 adds a third.
MAX_IMAGE_BYTES = 96 * 2**20
_SIGNATURE_BYTES = 16


@dataclass(frozen=True)
class ImageContent:
    """The bytes of an image file and what identifies this version of the file.

    ``modified_ns`` is the modification time in nanoseconds since 1970.
    """

    data: bytes
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class ImageFile:
    """An image in the folder. ``name`` is its relative path."""

    name: str
    path: Path

    def version(self) -> tuple[int, int] | None:
        """Return the size in bytes and the modification time, or None if the file cannot be accessed."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def read(self) -> ImageContent:
        """Read the file.

        Raises ImageError if it cannot be read, is not an image or is too large for any server.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size > MAX_IMAGE_BYTES:
                    raise ImageError(
                        f"The file has {status.st_size:,} bytes. A server accepts at most "
                        f"{MAX_IMAGE_BYTES:,}. Resize the image."
                    )
                data = file.read()
        except OSError as exc:
            raise ImageError(f"Cannot read the image: {exc.strerror}.") from exc
        if not data:
            raise ImageError("The file is empty.")
        if media_type(data) is None:
            first_bytes = data[:8]
            raise ImageError(f"The file is not an image: it begins with {first_bytes!r}.")
        return ImageContent(data, status.st_mtime_ns, hashlib.sha256(data).hexdigest())


def find_images(folder: Path) -> list[ImageFile]:
    """Return the images in ``folder``, sorted by name.

    Raises ConfigurationError if the folder or a subfolder cannot be read, or if there are no images.
    """
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigurationError(f"{str(folder)!r} {reason}. Pass a folder with images to --images.")
    images = sorted(_walk(folder), key=lambda image: image.name)
    if not images:
        extensions = ", ".join(sorted(EXTENSIONS))
        raise ConfigurationError(
            f"The folder {str(folder)!r} contains no images. Supported extensions are {extensions}."
        )
    return images


def _walk(folder: Path) -> Iterator[ImageFile]:
    for parent, subfolders, files in os.walk(folder, onerror=_report):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and _is_image(path):
                yield ImageFile(path.relative_to(folder).as_posix(), path)


def _is_image(path: Path) -> bool:
    if path.suffix:
        return path.suffix.lower() in EXTENSIONS and (path.is_file() or not path.exists())
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return media_type(file.read(_SIGNATURE_BYTES)) is not None
    except OSError:
        return False


def _report(error: OSError) -> NoReturn:
    name = str(error.filename)
    raise ConfigurationError(f"Cannot read the folder {name!r}: {error.strerror}.") from error
