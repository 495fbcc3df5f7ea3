"""Shows weight loading progress: a progress bar on a terminal, or up to ten log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO, TypeAlias

__all__ = ["LoadProgress", "ProgressCallback"]

ProgressCallback: TypeAlias = Callable[[int, int, int], None]  # bytes read, total bytes, tensors started

_BAR_WIDTH = 30
_GIB = 1 << 30

logger = logging.getLogger(__name__)


class LoadProgress:
    """A ProgressCallback that writes only when the displayed progress changes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._is_terminal = self._stream.isatty()
        self._num_shown = -1  # filled bar positions on a terminal, tenths in a log

    def __call__(self, num_done: int, num_bytes: int, num_tensors: int) -> None:
        fraction = num_done / num_bytes if num_bytes else 1.0
        num_shown = int(fraction * (_BAR_WIDTH if self._is_terminal else 10))
        if num_shown == self._num_shown:
            return
        self._num_shown = num_shown
        text = f"{num_done / _GIB:.2f} of {num_bytes / _GIB:.2f} GiB, {num_tensors} tensors"
        if self._is_terminal:
            bar = "#" * num_shown + "." * (_BAR_WIDTH - num_shown)
            self._stream.write(f"\rloading [{bar}] {text}" + ("\n" if fraction >= 1 else ""))
            self._stream.flush()
        else:
            logger.info("loading weights: %d%%, %s", int(fraction * 100), text)
