"""Limits on JSON texts, checked on the raw bytes before any object is built.

A short text can describe many objects: the Python objects for 30 MB of ``[],[],[],...`` occupy 1.4 GB, and
building them takes seconds, in which no other request is served. The check reads the text in pieces and
stops at the first piece that exceeds a limit. In each piece, it removes the strings and then counts the
characters that are left. All loops over characters run in C, so that images in data URLs cost little.

The counts are exact for valid JSON. In invalid JSON, they are exact up to the first error, where the parser
stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

__all__ = ["MAX_TOKEN_IDS", "TOKEN_LIMITS", "JsonLimits", "JsonTooLarge", "check_json"]

MAX_TOKEN_IDS = 1 << 17  # maximum number of token IDs in a prompt; more than any LLaVA model's context length

_PIECE_BYTES = 1 << 16  # fits in the CPU's cache
_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(_BRACKETS)))
_AS_STEPS = bytes.maketrans(_BRACKETS, b"\x01\xff\x01\xff")  # +1 and -1 as signed bytes


@dataclass(frozen=True)
class JsonLimits:
    """The limits of one JSON text.

    ``max_depth`` is the number of nested objects and arrays. ``max_containers`` limits the number of objects
    and arrays, such as messages, content parts and tools. ``max_fields`` limits the number of fields in all
    objects. ``max_values`` limits the number of fields in all objects plus that of items in all arrays.
    """

    max_depth: int = 128
    max_containers: int = 16_384
    max_fields: int = 65_536
    max_values: int = 327_680


# For requests that can contain several prompts as token IDs.
TOKEN_LIMITS = JsonLimits(max_values=8 * MAX_TOKEN_IDS + 65_536)


class JsonTooLarge(ValueError):
    """A JSON text exceeds a limit. The message is a sentence without its subject, which is the text."""

    def about(self, subject: str) -> str:
        """Return the message with its subject, such as "The request body"."""
        return f"{subject} {self}"


def check_json(text: bytes, limits: JsonLimits) -> None:
    """Raise JsonTooLarge if the text exceeds a limit. The parser reports all other errors.

    The time is linear in the size of the text.
    """
    num_containers = num_fields = num_values = depth = begin = 0
    in_string = False
    while begin < len(text):
        piece = _piece(text, begin)
        begin += len(piece)
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        sections = piece.split(b'"')  # alternately outside and inside of strings
        outside = b"".join(sections[in_string::2])
        in_string ^= len(sections) % 2 == 0
        steps = outside.translate(_AS_STEPS, _NOT_BRACKETS)
        depths = list(accumulate(memoryview(steps).cast("b"), initial=depth))
        depth = depths[-1]
        if max(depths) > limits.max_depth:
            raise JsonTooLarge(
                f"is nested too deeply. The limit is {limits.max_depth} levels of objects and arrays. Reduce "
                "the nesting."
            )
        num_containers += steps.count(b"\x01")
        num_fields += outside.count(b":")
        num_values += outside.count(b",")
        _check_counts(num_containers, num_fields, num_values + num_containers, limits)
        if depth < 0:
            return


def _piece(text: bytes, begin: int) -> bytes:
    """Return the part of the text that begins at ``begin``. It does not end within an escape sequence."""
    piece = text[begin : begin + _PIECE_BYTES]
    num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
    return piece[:-1] if num_backslashes % 2 and len(piece) > 1 else piece


def _check_counts(num_containers: int, num_fields: int, num_values: int, limits: JsonLimits) -> None:
    """Raise JsonTooLarge if a limit is exceeded.

    ``num_values`` is the number of commas, objects and arrays. An array with n items has n - 1 commas.
    """
    for number, limit, what in (
        (num_containers, limits.max_containers, "objects and arrays"),
        (num_fields, limits.max_fields, "fields"),
        (num_values, limits.max_values, "values"),
    ):
        if number > limit:
            raise JsonTooLarge(
                f"contains more than {limit} {what}. Send fewer or smaller messages, content parts, tools or "
                "schemas, or split the request."
            )
