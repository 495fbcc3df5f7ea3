"""Parser for data: URLs, according to the WHATWG Fetch and Infra standards. ``fetch`` fetches remote URLs.

The server parses only the start of a URL. The data, which can be tens of megabytes, is decoded by
``decode_body`` in a decoder process, whose memory and CPU time are limited. All steps take linear time.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal, NamedTuple

from llava_server.images.errors import ImageError

__all__ = ["DataEncoding", "EncodedImage", "decode_body", "parse_data_url"]

DataEncoding = Literal["base64", "percent"]

_MAX_QUOTED = 40  # maximum number of characters that an error message quotes from the input
_STRIPPED = "".join(map(chr, range(0x21)))  # characters that URL parsers strip from both ends
_REMOVED = str.maketrans("", "", "\t\n\r")  # characters that URL parsers remove everywhere
_WHITESPACE = b"\t\n\f\r "
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,39}):")  # not the drive letter of a path
_BASE64_SUFFIX = re.compile(r"; *base64\Z", re.IGNORECASE)
# Runs, because one call per escape would be slow. unquote_to_bytes is slow if most escapes are invalid.
_ESCAPES = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class EncodedImage(NamedTuple):
    """An image as received: the declared media type, and the data, which has not been validated yet."""

    media_type: str
    data: bytes
    encoding: DataEncoding = "base64"


def parse_data_url(url: str, *, max_bytes: int) -> EncodedImage:
    """Parse ``data:[<type>][;parameter...][;base64],<data>``. Raises ImageError.

    The media type is lowercase and has no parameters. It is empty if the URL has none. ``max_bytes`` limits
    the file size, which is estimated from the length of the data.
    """
    url = url.strip(_STRIPPED)
    if url[:5].lower() != "data:":
        raise _unsupported(url)
    head, comma, text = url[5:].partition(",")
    if not comma:
        raise ImageError(
            "invalid_image_url",
            "the data: URL has no comma. Send the image as data:image/png;base64,...",
        )
    head = head.translate(_REMOVED).strip(" \f")
    base64_suffix = _BASE64_SUFFIX.search(head)
    media_type = head[: base64_suffix.start() if base64_suffix else None].partition(";")[0].strip().lower()
    if media_type and not media_type.startswith("image/") and media_type != "application/octet-stream":
        quoted_type = media_type[:_MAX_QUOTED]
        raise ImageError(
            "invalid_image_url",
            f"the media type {quoted_type!a} is not an image type. Use data:image/png;base64,...",
        )
    encoding: DataEncoding = "base64" if base64_suffix else "percent"
    return EncodedImage(media_type, _data(text.partition("#")[0], encoding, max_bytes), encoding)


def _unsupported(url: str) -> ImageError:
    """Return the error for a URL that is neither a data: URL nor remote."""
    if scheme := _SCHEME.match(url):
        return ImageError(
            "invalid_image_url",
            f"the scheme {scheme[1]!r} of the URL is not supported, and the server never reads files of its "
            "own machine for a client. Send the image as data:image/png;base64,..., or as an https:// URL.",
        )
    return ImageError(
        "invalid_image_url", "the URL is not a data: URL. Send the image as data:image/png;base64,..."
    )


def decode_body(data: bytes, encoding: DataEncoding) -> bytes:
    """Decode the data of a data: URL. Raises ValueError if the base64 text is invalid.

    Base64 text can contain whitespace and percent-encoded characters, and the padding can be omitted. The
    URL-safe alphabet (RFC 4648, section 5) is also accepted, because each of its characters has one meaning.
    """
    if b"%" in data:
        data = _ESCAPES.sub(_unescape, data.translate(None, b"\t\n\r"))
    if encoding == "percent":
        return data
    text = data.translate(_FROM_URL_SAFE, _WHITESPACE)
    if len(text) % 4 == 0:
        text = text[:-2] + text[-2:].rstrip(b"=") if text.endswith(b"=") else text
    if len(text) % 4 == 1 or b"=" in text:
        raise ValueError("The padding of the base64 text is invalid.")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("The base64 text contains an invalid character.") from error


def _unescape(escapes: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escapes[0].replace(b"%", b"").decode("ascii"))


def _data(text: str, encoding: DataEncoding, max_bytes: int) -> bytes:
    if not text.strip():
        raise ImageError("invalid_image", "the image is empty: the data: URL has no data after the comma.")
    # A percent-encoded character takes three characters, and whitespace is not part of the data.
    num_ignored = 2 * text.count("%") + sum(text.count(character) for character in "\t\n\r ")
    num_characters = len(text) - num_ignored
    num_bytes = num_characters * 3 // 4 if encoding == "base64" else num_characters
    if num_bytes > max_bytes + 2:  # up to two bytes of the estimate can be padding
        raise ImageError(
            "image_too_large",
            f"the image is about {num_bytes} bytes; the limit is {max_bytes} bytes. Send a smaller file.",
        )
    if encoding == "base64" and not text.isascii():
        raise ImageError(
            "invalid_image_url",
            "the base64 text contains characters other than A-Z a-z 0-9 + / =. Encode the file as base64.",
        )
    return text.encode("utf-8")
