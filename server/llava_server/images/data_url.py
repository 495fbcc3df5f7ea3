"""Parser for data: URLs. Remote URLs are fetched by ``fetch``."""

from __future__ import annotations

from typing import NamedTuple

from llava_server.images.errors import ImageError

__all__ = ["EncodedImage", "parse_data_url"]

_MAX_QUOTED = 40  # maximum number of characters that an error message quotes from the input


class EncodedImage(NamedTuple):
    """An image as received: the declared media type and the base64 text, which has not been validated yet."""

    media_type: str
    base64: bytes


def parse_data_url(url: str, *, max_bytes: int) -> EncodedImage:
    """Parse ``data:[<type>][;parameter...];base64,<text>``. Raises ImageError.

    ``max_bytes`` limits the file size, which is estimated from the length of the base64 text.
    """
    if url[:5].lower() != "data:":
        raise ImageError(
            "invalid_image_url", "the URL is not a data: URL. Send the image as data:image/png;base64,..."
        )
    head, comma, text = url[5:].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError(
            "invalid_image_url",
            "the data: URL is not base64-encoded. Send the image as data:image/png;base64,...",
        )
    media_type = head[: -len(";base64")].partition(";")[0].strip().lower()
    if media_type and not media_type.startswith("image/") and media_type != "application/octet-stream":
        quoted_type = media_type[:_MAX_QUOTED]
        raise ImageError(
            "invalid_image_url",
            f"the media type {quoted_type!a} is not an image type. Use data:image/png;base64,...",
        )
    return EncodedImage(media_type, _as_ascii(text, max_bytes))


def _as_ascii(text: str, max_bytes: int) -> bytes:
    if not text:
        raise ImageError("invalid_image", "the image is empty: the data: URL has no data after 'base64,'.")
    num_bytes = len(text) * 3 // 4
    if num_bytes > max_bytes + 2:  # up to two bytes of the estimate can be padding
        raise ImageError(
            "image_too_large",
            f"the image is about {num_bytes} bytes; the limit is {max_bytes} bytes. Send a smaller file.",
        )
    if not text.isascii():
        raise ImageError(
            "invalid_image_url",
            "the base64 text contains characters other than A-Z a-z 0-9 + / =. Encode the file as base64.",
        )
    return text.encode("ascii")
