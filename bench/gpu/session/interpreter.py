"""Whether Triton's interpreter, which rehearsals use, can run the attention kernels.

The interpreter of Triton 3.6 converts arrays of one element to integers, which NumPy 2.4 and later reject.

This module requires the triton package.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from bench.gpu.session.measurement import NotApplicable

__all__ = ["require_loops"]


@triton.jit
def _count(out, limits):  # type: ignore[no-untyped-def]
    count = 0
    for _ in range(0, tl.load(limits), 1):
        count += 1
    tl.store(out, count)


def require_loops() -> None:
    """Raise NotApplicable if kernels are interpreted and loops whose limit is a tensor do not work."""
    if not triton.knobs.runtime.interpret:
        return
    out, limits = torch.zeros(1, dtype=torch.int32), torch.full((1,), 2, dtype=torch.int32)
    try:
        _count[1,](out, limits)
    except triton.runtime.errors.InterpreterError as error:
        raise NotApplicable(
            f"The interpreter of Triton {triton.__version__} does not support NumPy {np.__version__}: {error}"
        ) from error
