"""Kernels in Triton for what a layer does to its rows between two matrices, each in one pass over memory.

They round where torch's operations do, but for rotations, whose products are rounded once instead of twice.
Imported only by who launches one: the module needs the triton package.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["rms_norm", "rotate", "silu_gate", "turn_and_keep"]


@triton.jit
def rms_norm(
    out,  # [rows, size]
    total,  # [rows, size]: x + more, where there is more
    x,
    more,
    weight,  # [size]
    size,
    eps,
    HAS_MORE: tl.constexpr,
    N: tl.constexpr,  # size, or more
):
    """One program a row."""
    at = tl.arange(0, N)
    is_in = at < size
    here = tl.program_id(0).to(tl.int64) * size + at
    value = tl.load(x + here, mask=is_in, other=0.0)
    kind = value.dtype
    if HAS_MORE:
        added = tl.load(more + here, mask=is_in, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(kind)
        tl.store(total + here, value, mask=is_in)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    scale = tl.load(weight + at, mask=is_in, other=0.0)
    result = scale.to(tl.float32) * wide.to(kind).to(tl.float32)
    tl.store(out + here, result.to(kind), mask=is_in)


@triton.jit
def silu_gate(
    out,  # [rows, size]
    x,  # [rows, 2 * size]
    size,
    N: tl.constexpr,
):
    """Programs (row, N numbers of it)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * N + tl.arange(0, N)
    is_in = at < size
    gate = tl.load(x + row * 2 * size + at, mask=is_in, other=0.0)
    up = tl.load(x + row * 2 * size + size + at, mask=is_in, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32)
    tl.store(out + row * size + at, (gated * up.to(tl.float32)).to(gate.dtype), mask=is_in)


@triton.jit
def rotate(
    out,  # [tokens, heads, 2 * half]
    x,  # the same with x_stride numbers from one token to the next
    cos,  # [tokens, half], as is sin
    sin,
    x_stride,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    H: tl.constexpr,  # HEADS, or more
    N: tl.constexpr,  # HALF, or more
):
    """One program a token: all heads turn by the same angles."""
    token = tl.program_id(0).to(tl.int64)
    head, at = tl.arange(0, H)[:, None], tl.arange(0, N)[None, :]
    is_in = (head < HEADS) & (at < HALF)
    angle = token * HALF + at
    c = tl.load(cos + angle, mask=at < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=at < HALF, other=0.0).to(tl.float32)
    place = head * 2 * HALF + at
    left = tl.load(x + token * x_stride + place, mask=is_in, other=0.0)
    right = tl.load(x + token * x_stride + place + HALF, mask=is_in, other=0.0).to(tl.float32)
    kind = left.dtype
    left = left.to(tl.float32)
    here = out + token * HEADS * 2 * HALF + place
    tl.store(here, (left * c - right * s).to(kind), mask=is_in)
    tl.store(here + HALF, (right * c + left * s).to(kind), mask=is_in)


@triton.jit
def turn_and_keep(
    q,  # [tokens, HEADS, 2 * HALF]
    keys,  # [slots, KV_HEADS, 2 * HALF], as are values
    values,
    qkv,  # [tokens, HEADS + 2 * KV_HEADS, 2 * HALF] with qkv_stride numbers from one token to the next
    cos,  # [tokens, HALF], as is sin
    sin,
    slots,  # int64 [tokens]
    qkv_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    H: tl.constexpr,  # heads that one program takes
    N: tl.constexpr,  # HALF, or more
):
    """Programs (token, H of its heads): each head is read once and written where it belongs."""
    token = tl.program_id(0).to(tl.int64)
    head, at = tl.program_id(1) * H + tl.arange(0, H)[:, None], tl.arange(0, N)[None, :]
    is_number = at < HALF
    is_query = is_number & (head < HEADS)
    is_key = is_number & (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_value = is_number & (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
    is_in = is_query | is_key | is_value
    c = tl.load(cos + token * HALF + at, mask=is_number, other=0.0).to(tl.float32)
    s = tl.load(sin + token * HALF + at, mask=is_number, other=0.0).to(tl.float32)
    here = qkv + token * qkv_stride + head * 2 * HALF + at
    left = tl.load(here, mask=is_in, other=0.0)
    right = tl.load(here + HALF, mask=is_in, other=0.0)
    x, y = left.to(tl.float32), right.to(tl.float32)
    turned_left, turned_right = (x * c - y * s).to(left.dtype), (y * c + x * s).to(left.dtype)
    there = q + (token * HEADS + head) * 2 * HALF + at
    tl.store(there, turned_left, mask=is_query)
    tl.store(there + HALF, turned_right, mask=is_query)
    first = tl.load(slots + token) * KV_HEADS - HEADS
    there = keys + (first + head) * 2 * HALF + at
    tl.store(there, turned_left, mask=is_key)
    tl.store(there + HALF, turned_right, mask=is_key)
    there = values + (first - KV_HEADS + head) * 2 * HALF + at
    tl.store(there, left, mask=is_value)
    tl.store(there + HALF, right, mask=is_value)
