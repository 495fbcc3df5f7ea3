"""How far the loading of weights is: a bar on a terminal, a line each tenth in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO, TypeAlias

__all__ = ["LoadProgress", "Progress"]

Progress: TypeAlias = Callable[[int, int, int], None]  # bytes done, bytes in all, tensors begun

_BAR_WIDTH = 30
_GIB = 1 << 30

logger = logging.getLogger(__name__)


class LoadProgress:
    """Called with bytes done, bytes in all and tensors begun; draws only where something changed."""

    def __init__(self, screen: TextIO | None = None) -> None:
        self._screen = screen if screen is not None else sys.stderr
        self._is_terminal = self._screen.isatty()
        self._shown = -1  # tenths in a log, places of the bar on a terminal

    def __call__(self, num_done: int, num_bytes: int, num_tensors: int) -> None:
        share = num_done / num_bytes if num_bytes else 1.0
        shown = int(share * (_BAR_WIDTH if self._is_terminal else 10))
        if shown == self._shown:
            return
        self._shown = shown
        text = f"{num_done / _GIB:.2f} of {num_bytes / _GIB:.2f} GiB, {num_tensors} tensors"
        if self._is_terminal:
            bar = "#" * shown + "." * (_BAR_WIDTH - shown)
            self._screen.write(f"\rloading [{bar}] {text}" + ("\n" if share >= 1 else ""))
            self._screen.flush()
        else:
            logger.info("loading: %d %%, %s", int(share * 100), text)
