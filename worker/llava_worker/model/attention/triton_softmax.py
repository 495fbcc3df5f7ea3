"""Online softmax for the Triton attention kernels.

This module requires the triton package, so import it only right before launching a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add_positions"]


@triton.jit
def add_positions(score, value, value_scale, row_max, row_sum, acc):
    """Add N context positions to the weighted sum of values, and return row_max, row_sum and acc.

    Shapes: score [M, N], -inf for masked positions; value [N, D]; value_scale [N] or None; row_max
    and row_sum [M]; acc [M, D]. row_sum and acc are scaled by e ** -row_max.
    """
    new_max = tl.maximum(row_max, tl.max(score, 1))
    base = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf if all positions so far are masked
    weight = tl.exp(score - base[:, None])
    rescale = tl.exp(row_max - base)
    row_sum = row_sum * rescale + tl.sum(weight, 1)
    if value_scale is not None:
        weight *= value_scale[None, :]
    product = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return new_max, row_sum, acc * rescale[:, None] + product
