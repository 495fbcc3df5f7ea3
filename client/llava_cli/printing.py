"""Text from elsewhere on the user's terminal."""

from __future__ import annotations

import sys

__all__ = ["print_delta", "sanitize"]

# A picture can talk a model into any characters, and a terminal obeys some: keep line ends and tabs, show
# the rest of C0, DEL and C1 as replacement characters.
_HARMLESS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def print_delta(delta: str) -> None:
    """Show a piece of an answer at once. A pipe or a file gets it unchanged."""
    sys.stdout.write(sanitize(delta) if sys.stdout.isatty() else delta)
    sys.stdout.flush()


def sanitize(text: str) -> str:
    """Replace the control characters in ``text``."""
    return text.translate(_HARMLESS)
