"""Returns freed memory to the operating system."""

from __future__ import annotations

import ctypes

__all__ = ["trim_heap"]


def trim_heap() -> None:
    """Return memory that C and C++ code has freed to the operating system, which takes a few milliseconds.

    glibc keeps such memory for later use if other memory at higher addresses is in use. With other C
    libraries, this function has no effect.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
