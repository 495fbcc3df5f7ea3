"""Errors and limits of images. Messages hold no text of a decoder, which may show addresses or paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ImageError", "ImageLimits", "image_error"]


@dataclass(frozen=True)
class ImageLimits:
    """The limits of one image."""

    max_pixels: int = 40_000_000
    max_side: int = 16_384  # pixels
    max_ratio: int = 100  # longer side to shorter side
    cpu_s: float = 5.0  # CPU time in the decoder process
    timeout_s: float = 30.0  # wall time in the decoder process; long, as workers may use every core
    memory_bytes: int = 2**30  # address space of a decoder process

    def for_decoder(self) -> dict[str, Any]:
        """Return the limits that the decoder process checks itself."""
        return {
            "max_pixels": self.max_pixels,
            "max_side": self.max_side,
            "max_ratio": self.max_ratio,
            "cpu_s": self.cpu_s,
        }


class ImageError(Exception):
    """An image that cannot be used. ``code`` is one of the server's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


_FORMATS = "JPEG, PNG, WEBP, GIF and BMP are taken"


def image_error(reason: str, numbers: dict[str, Any], limits: ImageLimits) -> ImageError:
    """Return the error for a decoder's one-word ``reason``; ``numbers`` are the image's width and height."""
    size = f"{numbers.get('width')} x {numbers.get('height')} pixels"
    code, message = {
        "bad_base64": (
            "invalid_image_url",
            "the base64 text is broken: only A-Z a-z 0-9 + / with = padding, without spaces or line breaks",
        ),
        "not_an_image": ("invalid_image", f"the bytes are not a picture of a known format; {_FORMATS}"),
        "damaged": (
            "invalid_image",
            f"the picture is damaged or cut off and cannot be decoded; save it again ({_FORMATS})",
        ),
        "too_large": (
            "image_too_large",
            f"the picture has {size}; the limits are {limits.max_pixels} pixels "
            f"and {limits.max_side} a side: scale it down",
        ),
        "too_narrow": (
            "invalid_image",
            f"the picture has {size}; one side may be at most {limits.max_ratio} times the other: crop it",
        ),
        "out_of_memory": (
            "image_too_large",
            f"decoding the picture needs more than {limits.memory_bytes // 2**20} MiB: scale it down",
        ),
        "timeout": (
            "invalid_image",
            f"decoding the picture took longer than {limits.timeout_s:g} s: scale it down or save it again",
        ),
        "crashed": (
            "invalid_image",
            "the picture's decoder broke down over it, or ran out of processor time: save it again as PNG",
        ),
    }[reason]
    return ImageError(code, message)
