"""Encodes JSON request bodies."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["JSON_HEADERS", "encode_json"]

JSON_HEADERS = {"Content-Type": "application/json"}


def encode_json(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8.

    Lone surrogates, which UTF-8 cannot represent, are sent as escapes. The server replaces them with U+FFFD.
    They occur in truncated text, and Python uses them for invalid bytes in arguments and file names. Raises
    ValueError for NaN and infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # such an escape is also a valid JSON escape
