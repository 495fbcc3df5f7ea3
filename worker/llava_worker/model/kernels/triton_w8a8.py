"""Triton kernels for W8A8: operations that quantize their outputs, and products of quantized rows.

The codes are int8 or fp8 (e4m3). Intermediate results are rounded as in torch. This module requires the
triton package, so import it only right before launching a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llava_worker.model.kernels.triton_numerics import round_half_even, round_to_e4m3
from llava_worker.model.kernels.triton_split_sum import sum_of_splits

__all__ = ["linear_w8a8", "quantize_w8a8", "rms_norm_w8a8", "scale_products", "silu_and_mul_w8a8"]

_MIN_TOP = tl.constexpr(2.0**-118)  # as in w8a8.py


@triton.jit
def rms_norm_w8a8(
    codes,  # [rows, size]
    scales,  # fp32 [rows]
    total,  # [rows, size]: x + residual; None if there is no residual
    x,
    residual,
    weight,  # [size]
    size,
    eps,
    N: tl.constexpr,  # >= size
):
    """Quantize the RMSNorm of one row per program. If there is a residual, add it first."""
    column = tl.arange(0, N)
    mask = column < size
    offset = tl.program_id(0).to(tl.int64) * size + column
    value = tl.load(x + offset, mask=mask, other=0.0)
    dtype = value.dtype
    if residual is not None:
        added = tl.load(residual + offset, mask=mask, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(dtype)
        tl.store(total + offset, value, mask=mask)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    scale = tl.load(weight + column, mask=mask, other=0.0)
    normed = (scale.to(tl.float32) * wide.to(dtype).to(tl.float32)).to(dtype)
    _store_row(codes, scales, normed.to(tl.float32), offset, mask)


@triton.jit
def silu_and_mul_w8a8(
    codes,  # [rows, size]
    scales,  # fp32 [rows]
    x,  # [rows, 2 * size]
    size,
    N: tl.constexpr,  # >= size
):
    """Quantize silu(left half) * right half of one row per program."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, N)
    mask = column < size
    gate = tl.load(x + row * 2 * size + column, mask=mask, other=0.0)
    up = tl.load(x + row * 2 * size + size + column, mask=mask, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32)
    product = (gated * up.to(tl.float32)).to(gate.dtype)
    _store_row(codes, scales, product.to(tl.float32), row * size + column, mask)


@triton.jit
def quantize_w8a8(
    codes,  # [rows, size]
    scales,  # fp32 [rows]
    x,  # [rows, size]
    size,
    N: tl.constexpr,  # >= size
):
    """Quantize one row per program."""
    column = tl.arange(0, N)
    mask = column < size
    offset = tl.program_id(0).to(tl.int64) * size + column
    value = tl.load(x + offset, mask=mask, other=0.0)
    _store_row(codes, scales, value.to(tl.float32), offset, mask)


@triton.jit
def _store_row(codes, scales, value, offset, mask):
    """Quantize and store the row of this program, fp32 [N]. If it is not finite, its scale is NaN."""
    maximum = 127.0 if codes.dtype.element_ty == tl.int8 else 448.0
    top = tl.max(tl.abs(value), 0) + tl.sum(value * 0, 0)
    factor = tl.where(top >= _MIN_TOP, tl.div_rn(top * 0 + maximum, tl.maximum(top, _MIN_TOP)), 0.0)
    scaled = value * factor
    code = round_half_even(scaled) if codes.dtype.element_ty == tl.int8 else round_to_e4m3(scaled)
    tl.store(codes + offset, code.to(codes.dtype.element_ty), mask=mask)
    tl.store(scales + tl.program_id(0), tl.div_rn(top, top * 0 + maximum))


@triton.jit(do_not_specialize=["rows", "splits", "steps"])
def linear_w8a8(
    y,  # [rows, outputs]
    partials,  # fp32, or int32 for int8 [row tiles * output tiles * splits, M, N]
    counters,  # int32 [row tiles * output tiles], all 0
    x,  # codes [rows, inputs]
    x_scales,  # fp32 [rows]
    w,  # codes [outputs, inputs]
    w_scales,  # fp32 [outputs]
    bias,  # [outputs], or None
    rows,
    inputs,
    outputs,
    splits,
    steps,  # iterations of each split, except that the last split can have fewer
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,  # inputs per iteration
    MAX_SPLITS: tl.constexpr,  # >= splits
):
    """Compute y = x W^T + b. A program handles M rows, N outputs and one of the splits of the inputs."""
    split = tl.program_id(2)
    row = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    lane = tl.program_id(1) * N + tl.arange(0, N)
    lane_codes = w + tl.minimum(lane, outputs - 1).to(tl.int64)[None, :] * inputs
    acc = tl.zeros([M, N], partials.dtype.element_ty)
    first = split * steps * K
    for start in range(first, tl.minimum(first + steps * K, inputs), K):
        column = start + tl.arange(0, K)
        mask = (row < rows) & (column < inputs)[None, :]
        value = tl.load(x + row * inputs + column[None, :], mask=mask, other=0.0)
        code = tl.load(lane_codes + column[:, None], mask=(column < inputs)[:, None], other=0.0)
        if w.dtype.element_ty == tl.int8:
            acc = tl.dot(value, code, acc, out_dtype=tl.int32)
        else:  # Hopper GPUs round the sums of FP8 products, so these sums are limited to K inputs
            acc = tl.dot(value, code, acc, max_num_imprecise_acc=K)
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    acc, is_last = sum_of_splits(acc, partials, counters, tile, split, splits, M, N, MAX_SPLITS)
    if is_last:
        row_scale = tl.load(x_scales + row, mask=row < rows, other=0.0)
        result = (
            acc.to(tl.float32) * row_scale * tl.load(w_scales + lane, mask=lane < outputs, other=0.0)[None, :]
        )
        if bias is not None:
            result += tl.load(bias + lane, mask=lane < outputs, other=0.0).to(tl.float32)[None, :]
        y_at = y + row.to(tl.int64) * outputs + lane[None, :]
        tl.store(y_at, result.to(y.dtype.element_ty), mask=(row < rows) & (lane < outputs)[None, :])


@triton.jit
def scale_products(
    y,  # [rows, outputs]
    products,  # int32 [rows, outputs]
    x_scales,  # fp32 [rows]
    w_scales,  # fp32 [outputs]
    bias,  # [outputs], or None
    outputs,
    N: tl.constexpr,
):
    """Scale sums of products of int8 codes. A program handles N outputs of one row."""
    row, lane = tl.program_id(0).to(tl.int64), tl.program_id(1) * N + tl.arange(0, N)
    mask = lane < outputs
    product = tl.load(products + row * outputs + lane, mask=mask, other=0).to(tl.float32)
    result = product * tl.load(x_scales + row) * tl.load(w_scales + lane, mask=mask, other=0.0)
    if bias is not None:
        result += tl.load(bias + lane, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * outputs + lane, result.to(y.dtype.element_ty), mask=mask)
