"""Functions for Triton kernels that round exactly like torch, on GPUs and in Triton's interpreter.

This module requires the triton package, so import it only right before launching a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["int8_codes", "int8_row_scale", "round_half_even"]

_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2^23: a sum with this number has no fraction
_TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal fp32 number


@triton.jit
def round_half_even(x):
    """Round fp32 numbers with magnitudes of at most 2^22 to integers, and ties to even numbers."""
    return (x + _ROUNDING) - _ROUNDING


@triton.jit
def int8_row_scale(top):
    """Return the scale of a row of an int8 KV cache whose largest magnitude is ``top``, rounded to bf16."""
    bits = tl.div_rn(top, top * 0 + 127.0).to(tl.int32, bitcast=True)
    scale = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return tl.where(scale < _TINY, _TINY, scale)  # a NaN remains a NaN


@triton.jit
def int8_codes(x, scale):
    """Return the codes of fp32 values with this scale, as fp32 integers from -127 to 127."""
    codes = round_half_even(tl.div_rn(x, x * 0 + scale))
    return tl.minimum(tl.maximum(codes, -127.0), 127.0)
