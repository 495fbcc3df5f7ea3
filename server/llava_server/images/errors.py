"""Image errors and limits.

Messages never contain output of the decoder, which may leak memory addresses or paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ImageError", "ImageLimits", "image_error"]


@dataclass(frozen=True)
class ImageLimits:
    """The limits for one image."""

    max_pixels: int = 40_000_000
    max_side: int = 16_384  # pixels
    max_scans: int = 64  # of a JPEG; encoders write up to about 20
    # CPU time in the decoder process. The slowest images that are not crafted need 0.08 s per megapixel.
    cpu_base_s: float = 1.0
    cpu_s_per_mp: float = 0.1
    timeout_s: float = (
        30.0  # wall-clock time in the decoder process; generous because workers may use all cores
    )
    memory_bytes: int = 2**30  # address space of one decoder process

    def for_decoder(self) -> dict[str, Any]:
        """Return the limits that are enforced inside the decoder process."""
        return {
            "max_pixels": self.max_pixels,
            "max_side": self.max_side,
            "max_scans": self.max_scans,
            "cpu_base_s": self.cpu_base_s,
            "cpu_s_per_mp": self.cpu_s_per_mp,
        }


class ImageError(Exception):
    """An image was rejected. ``code`` is one of the server's error codes.

    The API prepends the path of the field to ``message``, which must therefore start with a lowercase letter.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


_FORMATS = "JPEG, PNG, WEBP, GIF, BMP and TIFF"


def image_error(reason: str, numbers: dict[str, Any], limits: ImageLimits) -> ImageError:
    """Return the error for a ``reason`` reported by the decoder process.

    ``numbers`` contains the image's width and height if the reason concerns the image size.
    """
    size = f"{numbers.get('width')} x {numbers.get('height')} pixels"
    memory_mib = limits.memory_bytes // 2**20
    code, message = {
        "bad_base64": (
            "invalid_image_url",
            "the base64 text is invalid. Use only A-Z a-z 0-9 + / with = as padding.",
        ),
        "not_an_image": (
            "invalid_image",
            f"the data is not an image in a supported format. Supported formats: {_FORMATS}.",
        ),
        "damaged": (
            "invalid_image",
            "the image is damaged or truncated, or its pixel format or compression is not supported. "
            "Save it again as PNG or JPEG. "
            f"Supported formats: {_FORMATS}.",
        ),
        "too_large": (
            "image_too_large",
            f"the image is {size}; the limits are {limits.max_pixels} pixels in total and "
            f"{limits.max_side} pixels per side. Scale the image down.",
        ),
        "out_of_memory": (
            "image_too_large",
            f"decoding the image requires more than {memory_mib} MiB of memory. Scale the image down.",
        ),
        "timeout": (
            "invalid_image",
            f"decoding the image took longer than {limits.timeout_s:g} seconds. "
            "Scale the image down or save it again.",
        ),
        "too_many_scans": (
            "invalid_image",
            f"the JPEG file has more than {limits.max_scans} scans. Save the image again as a JPEG or PNG.",
        ),
        "cpu_time": (
            "invalid_image",
            f"decoding the image requires more CPU time than the limit of {limits.cpu_base_s:g} seconds plus "
            f"{limits.cpu_s_per_mp:g} seconds per megapixel. Save the image again as a JPEG or PNG.",
        ),
        "crashed": (
            "invalid_image",
            "the decoder crashed on this image. Save the image again as PNG.",
        ),
    }[reason]
    return ImageError(code, message)
