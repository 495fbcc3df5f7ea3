"""Makes outputs that a kernel does not write visible in self-tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic

__all__ = ["uninitialized_memory_is_nan"]


@contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    """Let torch fill the memory of new tensors without a value with NaN (integers: the largest value).

    Without this, an output that a kernel does not write may contain the correct result of an earlier call.
    Tensors that are allocated by C++ code are filled too. torch does this only while deterministic algorithms
    are requested. ``warn_only`` permits other algorithms as well. The setting applies to all threads.
    """
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = deterministic  # torch's type stubs do not contain this attribute
    was_filling = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = was_filling
        torch.use_deterministic_algorithms(was_deterministic, warn_only=was_warn_only)
