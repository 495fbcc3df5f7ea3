"""Triton kernels for the row operations between matrix products. Each kernel makes only one pass over memory.

Intermediate results are rounded as in torch, except in `rope_and_cache` and `rope`, which round once instead
of twice. This module requires the triton package, so import it only right before launching a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llava_worker.model.kernels.triton_numerics import int8_codes, int8_row_scale

__all__ = ["rms_norm", "rope", "rope_and_cache", "silu_and_mul"]


@triton.jit
def rms_norm(
    out,  # [rows, size]
    total,  # [rows, size]: x + residual, if HAS_RESIDUAL
    x,
    residual,
    weight,  # [size]
    size,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    N: tl.constexpr,  # >= size
):
    """Compute the RMSNorm of one row per program. If HAS_RESIDUAL, add the residual first."""
    column = tl.arange(0, N)
    mask = column < size
    offset = tl.program_id(0).to(tl.int64) * size + column
    value = tl.load(x + offset, mask=mask, other=0.0)
    dtype = value.dtype
    if HAS_RESIDUAL:
        added = tl.load(residual + offset, mask=mask, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(dtype)
        tl.store(total + offset, value, mask=mask)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    scale = tl.load(weight + column, mask=mask, other=0.0)
    result = scale.to(tl.float32) * wide.to(dtype).to(tl.float32)
    tl.store(out + offset, result.to(dtype), mask=mask)


@triton.jit
def silu_and_mul(
    out,  # [rows, size]
    x,  # [rows, 2 * size]
    size,
    N: tl.constexpr,
):
    """Compute silu(left half) * right half. A program handles N elements of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * N + tl.arange(0, N)
    mask = column < size
    gate = tl.load(x + row * 2 * size + column, mask=mask, other=0.0)
    up = tl.load(x + row * 2 * size + size + column, mask=mask, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32)
    tl.store(out + row * size + column, (gated * up.to(tl.float32)).to(gate.dtype), mask=mask)


@triton.jit
def rope(
    out,  # [tokens, heads, 2 * half]
    x,  # [tokens, heads, 2 * half]
    cos,  # [tokens, half], like sin
    sin,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    H: tl.constexpr,  # >= HEADS
    N: tl.constexpr,  # >= HALF
):
    """Rotate all heads of one token per program."""
    token = tl.program_id(0).to(tl.int64)
    head, dim = tl.arange(0, H)[:, None], tl.arange(0, N)[None, :]
    mask = (head < HEADS) & (dim < HALF)
    angle = token * HALF + dim
    c = tl.load(cos + angle, mask=dim < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=dim < HALF, other=0.0).to(tl.float32)
    offset = head * 2 * HALF + dim
    x_at = x + token * HEADS * 2 * HALF + offset
    left = tl.load(x_at, mask=mask, other=0.0)
    right = tl.load(x_at + HALF, mask=mask, other=0.0).to(tl.float32)
    dtype = left.dtype
    left = left.to(tl.float32)
    out_at = out + token * HEADS * 2 * HALF + offset
    tl.store(out_at, (left * c - right * s).to(dtype), mask=mask)
    tl.store(out_at + HALF, (right * c + left * s).to(dtype), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def rope_and_cache(
    q,  # [tokens, HEADS, 2 * HALF]
    keys,  # [slots, KV_HEADS, 2 * HALF], like values; int8 if there are scales
    values,
    key_scales,  # fp32 [slots, KV_HEADS], like value_scales; None if keys are not int8
    value_scales,
    qkv,  # [tokens, HEADS + 2 * KV_HEADS, 2 * HALF]
    cos,  # [tokens, HALF], like sin
    sin,
    slots,  # int64 [tokens]
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    H: tl.constexpr,  # heads per program
    N: tl.constexpr,  # >= HALF
):
    """Process H heads of one token per program: rotate q and k, and write each head to q, keys or values."""
    token = tl.program_id(0).to(tl.int64)
    head, dim = tl.program_id(1) * H + tl.arange(0, H)[:, None], tl.arange(0, N)[None, :]
    is_dim = dim < HALF
    is_query = is_dim & (head < HEADS)
    is_key = is_dim & (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_value = is_dim & (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
    mask = is_query | is_key | is_value
    c = tl.load(cos + token * HALF + dim, mask=is_dim, other=0.0).to(tl.float32)
    s = tl.load(sin + token * HALF + dim, mask=is_dim, other=0.0).to(tl.float32)
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF + dim
    left = tl.load(source, mask=mask, other=0.0)
    right = tl.load(source + HALF, mask=mask, other=0.0)
    x, y = left.to(tl.float32), right.to(tl.float32)
    rotated_left, rotated_right = (x * c - y * s).to(left.dtype), (y * c + x * s).to(left.dtype)
    target = q + (token * HEADS + head) * 2 * HALF + dim
    tl.store(target, rotated_left, mask=is_query)
    tl.store(target + HALF, rotated_right, mask=is_query)
    first = tl.load(slots + token) * KV_HEADS - HEADS
    key_row, value_row = first + head, first - KV_HEADS + head
    if key_scales is not None:
        rotated_left, rotated_right, scale = _int8_rows(rotated_left, rotated_right)
        tl.store(key_scales + key_row, scale, mask=(head >= HEADS) & (head < HEADS + KV_HEADS))
        left, right, scale = _int8_rows(left, right)
        is_value_row = (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
        tl.store(value_scales + value_row, scale, mask=is_value_row)
    target = keys + key_row * 2 * HALF + dim
    tl.store(target, rotated_left, mask=is_key)
    tl.store(target + HALF, rotated_right, mask=is_key)
    target = values + value_row * 2 * HALF + dim
    tl.store(target, left, mask=is_value)
    tl.store(target + HALF, right, mask=is_value)


@triton.jit
def _int8_rows(left, right):
    """Return the int8 codes of rows with halves left and right [rows, N], and the scales [rows, 1]."""
    left, right = left.to(tl.float32), right.to(tl.float32)
    top = tl.maximum(tl.max(tl.abs(left), 1), tl.max(tl.abs(right), 1))
    scale = int8_row_scale(top + tl.sum(left * 0 + right * 0, 1))[:, None]  # NaN if an element is not finite
    return int8_codes(left, scale).to(tl.int8), int8_codes(right, scale).to(tl.int8), scale
