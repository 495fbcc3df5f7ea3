"""Functions for Triton kernels that round exactly like torch, on GPUs and in Triton's interpreter.

This module requires the triton package, so import it only right before launching a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["int8_codes", "int8_row_scale", "round_half_even", "round_to_e4m3"]

_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2^23: a sum with this number has no fraction
_E4M3_ROUNDING = tl.constexpr(24576.0)  # 1.5 * 2^14: a sum with this number is a multiple of 2^-9
_TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal fp32 number


@triton.jit
def round_half_even(x):
    """Round fp32 numbers with magnitudes of at most 2^22 to integers, and ties to even numbers."""
    return (x + _ROUNDING) - _ROUNDING


@triton.jit
def round_to_e4m3(x):
    """Round fp32 numbers with magnitudes of at most 448 to numbers that fp8 (e4m3) can represent.

    On GPUs, the conversion to fp8 would round in the same way. In Triton's interpreter, it truncates.
    """
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    subnormal = (x + _E4M3_ROUNDING) - _E4M3_ROUNDING
    return tl.where(tl.abs(x) < 0.015625, subnormal, normal)  # 2^-6, the smallest normal number


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
