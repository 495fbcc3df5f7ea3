"""Safe terminal output for text from models and servers."""

from __future__ import annotations

import sys

__all__ = ["print_delta", "sanitize"]

# An image can make a model emit any character, including terminal escape sequences. Newlines and tabs are
# preserved. All other C0 and C1 control characters and DEL are replaced.
_HARMLESS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def print_delta(delta: str) -> None:
    """Write a piece of a response immediately. On a terminal, control characters are replaced."""
    sys.stdout.write(sanitize(delta) if sys.stdout.isatty() else delta)
    sys.stdout.flush()


def sanitize(text: str) -> str:
    """Replace the control characters in ``text``."""
    return text.translate(_HARMLESS)
