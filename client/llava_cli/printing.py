"""Safe terminal output for text from models and servers."""

from __future__ import annotations

import sys

__all__ = ["print_delta", "sanitize"]

# Text hidden in an image can make a model emit any character, including terminal escape sequences. Therefore,
# DEL and all C0 and C1 control characters except for newlines and tabs are replaced.
_HARMLESS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def print_delta(delta: str) -> None:
    """Write part of a response to stdout and flush it. If stdout is a terminal, sanitize the text."""
    sys.stdout.write(sanitize(delta) if sys.stdout.isatty() else delta)
    sys.stdout.flush()


def sanitize(text: str) -> str:
    """Replace all control characters in ``text`` except for newlines and tabs."""
    return text.translate(_HARMLESS)
