"""Kernels in Triton, for NVIDIA GPUs of any generation that it compiles for; its interpreter runs them too.

Imported only by who launches one: the module needs the triton package.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["int4_linear", "paged_attention"]


@triton.jit
def paged_attention(
    out,  # [tokens, heads, head_dim]
    q,  # [tokens, heads, head_dim]
    keys,  # [slots, kv_heads, head_dim], as are values
    values,
    starts,  # int32 [rows + 1]
    contexts,  # int32 [rows]
    tables,  # int32 [rows, blocks]
    scale,
    q_stride,  # numbers from one token to the next
    table_stride,
    WINDOW: tl.constexpr,  # tokens that one sees, itself included; 0: all before it
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads that share a key head
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,  # tokens of a row that one program takes
    M: tl.constexpr,  # QUERIES * GROUP, or more
    N: tl.constexpr,  # places of the context that are looked at together
    D: tl.constexpr,  # HEAD_DIM, or more
):
    """Programs (row, part of its tokens, key head): softmax over the context in one pass, as it is read."""
    row, part, kv_head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    num_new = tl.load(starts + row + 1) - start
    context = tl.load(contexts + row)
    if part * QUERIES >= num_new:
        return
    lane, dim = tl.arange(0, M), tl.arange(0, D)
    token = part * QUERIES + lane // GROUP
    is_query = (lane < QUERIES * GROUP) & (token < num_new)
    at = context - num_new + token  # the token's position in its sequence
    head = kv_head * GROUP + lane % GROUP
    within = head[:, None] * HEAD_DIM + dim[None, :]
    is_number = is_query[:, None] & (dim[None, :] < HEAD_DIM)
    token = (start + token).to(tl.int64)[:, None]
    asked = tl.load(q + token * q_stride + within, mask=is_number, other=0.0)
    first = context - num_new + part * QUERIES
    end = tl.minimum(context, first + QUERIES)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first - WINDOW + 1, 0) // N * N
    most = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    sums = tl.zeros([M, D], tl.float32)
    for near in range(begin, end, N):
        seen = near + tl.arange(0, N)
        block = tl.load(tables + row * table_stride + seen // BLOCK_SIZE, mask=seen < end, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + seen % BLOCK_SIZE
        where = (slot[:, None] * KV_HEADS + kv_head) * HEAD_DIM + dim[None, :]
        is_kept = (seen < end)[:, None] & (dim[None, :] < HEAD_DIM)  # what lies beyond may be anything
        key = tl.load(keys + where, mask=is_kept, other=0.0)
        value = tl.load(values + where, mask=is_kept, other=0.0)
        score = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        most, total, sums = _take(score, value, seen, at, WINDOW, most, total, sums)
    result = sums / tl.where(is_query, total, 1.0)[:, None]
    here = out + token * (KV_HEADS * GROUP * HEAD_DIM) + within
    tl.store(here, result.to(out.dtype.element_ty), mask=is_number)


@triton.jit
def _take(score, value, seen, at, WINDOW: tl.constexpr, most, total, sums):
    """Add some places of the context to what the lanes have seen; the scale of all is e ** most."""
    is_seen = seen[None, :] <= at[:, None]
    if WINDOW > 0:
        is_seen = is_seen & (seen[None, :] > at[:, None] - WINDOW)
    score = tl.where(is_seen, score, float("-inf"))
    more = tl.maximum(most, tl.max(score, 1))
    base = tl.where(more == float("-inf"), 0.0, more)  # nothing seen so far
    weight = tl.exp(score - base[:, None])
    shrink = tl.exp(most - base)
    total = total * shrink + tl.sum(weight, 1)
    sums = sums * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return more, total, sums


@triton.jit
def int4_linear(
    y,  # [rows, outputs]
    x,  # [rows, inputs]
    packed,  # uint8 [lanes, half]: input i has the low half of a byte, half + i the high one, both plus 8
    scales,  # bf16 [lanes / PANEL, groups, PANEL]
    bias,  # fp32 [outputs]
    rows,
    inputs,
    outputs,
    half,  # bytes of a row of W; inputs beyond the last are padding
    HAS_BIAS: tl.constexpr,
    GROUP: tl.constexpr,  # inputs that share a scale
    PANEL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,  # bytes looked at together, all of one group
):
    """y = x W^T + b for M rows and N outputs; a group's scale goes over its part of the sum."""
    row = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    lane = tl.program_id(1) * N + tl.arange(0, N)
    is_lane = lane < outputs
    groups = 2 * half // GROUP
    scale_of = scales + (lane // PANEL) * groups * PANEL + lane % PANEL
    total = tl.zeros([M, N], tl.float32)
    for near in range(0, half, K):
        at = near + tl.arange(0, K)
        both = tl.load(
            packed + lane.to(tl.int64)[None, :] * half + at[:, None], mask=is_lane[None, :], other=0
        )
        low, high = both & 15, both >> 4
        for part in tl.static_range(2):
            first = near + part * half
            place = (at + part * half)[None, :]
            value = tl.load(x + row * inputs + place, mask=(row < rows) & (place < inputs), other=0.0)
            whole = high if part else low
            w = (whole.to(tl.int8) - 8).to(value.dtype)
            scale = tl.load(scale_of + first // GROUP * PANEL, mask=is_lane, other=0.0).to(tl.float32)
            total += tl.dot(value, w, input_precision="ieee") * scale[None, :]
    if HAS_BIAS:
        total += tl.load(bias + lane, mask=is_lane, other=0.0)[None, :]
    where = y + row * outputs + lane[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=(row < rows) & is_lane[None, :])
