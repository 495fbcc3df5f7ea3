"""Parse data: URLs. Remote URLs are fetched by ``fetch``."""

from __future__ import annotations

from typing import NamedTuple

from llava_server.images.errors import ImageError

__all__ = ["EncodedImage", "parse_data_url"]

_MAX_QUOTED = 40  # characters of the client's text in an error


class EncodedImage(NamedTuple):
    """An image as it was received: base64 text, not decoded or checked yet, and the media type it claims."""

    media_type: str
    base64: bytes


def parse_data_url(url: str, *, max_bytes: int) -> EncodedImage:
    """Parse ``data:[<type>][;parameter...];base64,<text>``. Raises ImageError.

    ``max_bytes`` is the limit of the decoded file; it is checked on the length of the text.
    """
    if url[:5].lower() != "data:":
        raise ImageError(
            "invalid_image_url", "not a data: URL; send the picture as data:image/png;base64,..."
        )
    head, comma, text = url[5:].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError(
            "invalid_image_url", "the data: URL is not base64; it must read data:image/png;base64,..."
        )
    media_type = head[: -len(";base64")].partition(";")[0].strip().lower()
    if media_type and not media_type.startswith("image/") and media_type != "application/octet-stream":
        raise ImageError(
            "invalid_image_url", f"a picture is needed, not {media_type[:_MAX_QUOTED]!a}; use data:image/..."
        )
    return EncodedImage(media_type, _as_ascii(text, max_bytes))


def _as_ascii(text: str, max_bytes: int) -> bytes:
    if not text:
        raise ImageError("invalid_image", "the picture is empty: there is nothing after base64,")
    if len(text) * 3 // 4 > max_bytes + 2:  # padding: at most two bytes less than the text's length says
        raise ImageError(
            "image_too_large", f"the picture has about {len(text) * 3 // 4} bytes; the limit is {max_bytes}"
        )
    if not text.isascii():
        raise ImageError("invalid_image_url", "the base64 text holds characters outside A-Z a-z 0-9 + / =")
    return text.encode("ascii")
