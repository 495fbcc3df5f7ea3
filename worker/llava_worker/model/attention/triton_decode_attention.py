"""The Triton kernel for decode attention: RoPE, writing to the KV cache, and attention in a single launch.

If several rows are tokens of one sequence, RoPE and writing to the cache are a launch of their own.

If a batch has few rows, the context of each row is divided into segments, so that all multiprocessors of the
GPU are used (split-KV, arXiv 2311.01282). The program that finishes the last segment of a row combines them.

This module requires the triton package, so import it only right before launching the kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llava_worker.model.attention.triton_softmax import add_positions
from llava_worker.model.kernels.triton_numerics import int8_codes, int8_row_scale

__all__ = ["decode_attention"]


@triton.jit(
    do_not_specialize=["table_stride", "segments"],
    do_not_specialize_on_alignment=["slots", "contexts", "tables"],
)
def decode_attention(
    out,  # [rows, KV_HEADS * GROUP, 2 * HALF]
    partials,  # fp32 [rows, KV_HEADS, segments, GROUP, 2 * HALF]
    partial_lse,  # fp32 [rows, KV_HEADS, segments, GROUP]
    counters,  # int32 [rows, KV_HEADS], all 0
    qkv,  # [rows, (GROUP + 2) * KV_HEADS, 2 * HALF]; if cos is None, q [rows, GROUP * KV_HEADS, 2 * HALF]
    cos,  # [rows, HALF], like sin; None if queries are rotated and the cache contains the new tokens
    sin,
    keys,  # [slots, KV_HEADS, 2 * HALF], like values; int8 if there are scales
    values,
    key_scales,  # fp32 [slots, KV_HEADS], like value_scales; None if keys are not int8
    value_scales,
    slots,  # int64 [rows], slot of each new token; None if cos is None
    contexts,  # int32 [rows], context lengths including the new token
    tables,  # int32 [rows, blocks]
    scale,
    table_stride,
    segments,
    WINDOW: tl.constexpr,  # window in tokens, including the current token; 0 means unlimited
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads per KV head
    HALF: tl.constexpr,  # half of the head size
    BLOCK_SIZE: tl.constexpr,
    M: tl.constexpr,  # >= GROUP
    N: tl.constexpr,  # context positions per iteration
    H: tl.constexpr,  # >= HALF
    D: tl.constexpr,  # >= 2 * HALF
    S: tl.constexpr,  # >= segments
):
    """Process one segment of the context of one row and one KV head per program.

    Unless the cache contains the new tokens, segment 0 includes the new token of its row, and its key and
    value are written to the cache.
    """
    row, kv_head, segment = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + row)
    end = context if cos is None else context - 1  # of the positions that are read from the cache
    begin = tl.maximum(context - WINDOW, 0) if WINDOW > 0 else 0
    length = tl.cdiv(tl.cdiv(end - begin, segments), N) * N
    num_used = tl.maximum(tl.cdiv(end - begin, tl.maximum(length, 1)), 1)
    if segment >= num_used:
        return
    query_left, query_right = _rotated_queries(qkv, cos, sin, row, kv_head, KV_HEADS, GROUP, HALF, M, H)
    row_max, row_sum, acc = _initial_state(
        *(query_left, query_right, qkv, cos, sin, keys, values, key_scales, value_scales, slots),
        *(row, kv_head, segment, scale, KV_HEADS, GROUP, HALF, M, H, D),
    )
    start = begin + segment * length
    row_max, row_sum, acc = _add_segment(
        *(query_left, query_right, keys, values, key_scales, value_scales, tables + row * table_stride),
        *(kv_head, scale, start, tl.minimum(start + length, end), row_max, row_sum, acc),
        *(KV_HEADS, HALF, BLOCK_SIZE, N, H, D),
    )
    _finish(
        *(out, partials, partial_lse, counters, acc / row_sum[:, None], row_max + tl.log(row_sum)),
        *(row.to(tl.int64) * KV_HEADS + kv_head, segment, segments, num_used, GROUP, HALF, M, D, S),
    )


@triton.jit
def _initial_state(
    query_left,
    query_right,
    qkv,
    cos,
    sin,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    row,
    kv_head,
    segment,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    M: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
):
    """Return row_max [M], row_sum [M] and acc [M, D] of the online softmax before the cache is read.

    Unless ``cos`` is None, they contain the new token in segment 0, which is written to the cache.
    """
    row_max, row_sum = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    if cos is not None:
        key_left, key_right, value = _new_key_and_value(
            *(qkv, cos, sin, keys, values, key_scales, value_scales, slots, row, kv_head, segment == 0),
            *(KV_HEADS, GROUP, HALF, H, D),
        )
        score = tl.sum(query_left.to(tl.float32) * key_left.to(tl.float32)[None, :], 1)
        score += tl.sum(query_right.to(tl.float32) * key_right.to(tl.float32)[None, :], 1)
        row_max = tl.where(segment == 0, score * scale, row_max)
        row_sum = tl.where(segment == 0, tl.full([M], 1.0, tl.float32), row_sum)
        acc = tl.where(segment == 0, acc + value.to(tl.float32)[None, :], acc)
    return row_max, row_sum, acc


@triton.jit
def _add_segment(
    query_left,
    query_right,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    kv_head,
    scale,
    start,
    end,
    row_max,
    row_sum,
    acc,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
):
    """Add the context positions from ``start`` to ``end`` to the online softmax."""
    dim, column = tl.arange(0, H), tl.arange(0, D)
    for first in range(start, end, N):
        position = first + tl.arange(0, N)
        is_seen = position < end  # the contents of other slots are undefined
        block = tl.load(table + position // BLOCK_SIZE, mask=is_seen, other=0)
        slot = (block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE) * KV_HEADS + kv_head
        key_at = keys + slot[:, None] * 2 * HALF + dim[None, :]
        key_mask = is_seen[:, None] & (dim < HALF)[None, :]
        left = tl.load(key_at, mask=key_mask, other=0.0).to(query_left.dtype)
        right = tl.load(key_at + HALF, mask=key_mask, other=0.0).to(query_left.dtype)
        value_mask = is_seen[:, None] & (column < 2 * HALF)[None, :]
        value = tl.load(values + slot[:, None] * 2 * HALF + column[None, :], mask=value_mask, other=0.0)
        score = tl.dot(query_left, tl.trans(left), input_precision="ieee")
        score = tl.dot(query_right, tl.trans(right), score, input_precision="ieee") * scale
        value_scale = None
        if key_scales is not None:
            score *= tl.load(key_scales + slot, mask=is_seen, other=0.0)[None, :]
            value_scale = tl.load(value_scales + slot, mask=is_seen, other=0.0)
        score = tl.where(is_seen[None, :], score, float("-inf"))
        value = value.to(query_left.dtype)
        row_max, row_sum, acc = add_positions(score, value, value_scale, row_max, row_sum, acc)
    return row_max, row_sum, acc


@triton.jit
def _rotated_queries(
    qkv,
    cos,
    sin,
    row,
    kv_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    M: tl.constexpr,
    H: tl.constexpr,
):
    """Return the left and right halves of the rotated queries, both [M, H]."""
    lane, dim = tl.arange(0, M), tl.arange(0, H)
    row_heads = GROUP * KV_HEADS if cos is None else (GROUP + 2) * KV_HEADS
    head = row.to(tl.int64) * row_heads + kv_head * GROUP + lane
    at = qkv + head[:, None] * 2 * HALF + dim[None, :]
    mask = (lane < GROUP)[:, None] & (dim < HALF)[None, :]
    left = tl.load(at, mask=mask, other=0.0)
    right = tl.load(at + HALF, mask=mask, other=0.0)
    if cos is not None:
        c, s = _angles(cos, sin, row, HALF, H)
        x, y = left.to(tl.float32), right.to(tl.float32)
        left = (x * c[None, :] - y * s[None, :]).to(qkv.dtype.element_ty)
        right = (y * c[None, :] + x * s[None, :]).to(qkv.dtype.element_ty)
    return left, right


@triton.jit
def _new_key_and_value(
    qkv,
    cos,
    sin,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    row,
    kv_head,
    is_written,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
):
    """Write the key and the value of the new token to the cache if ``is_written``.

    Return them as they will be read from the cache: the halves of the rotated key [H], and the value [D].
    """
    dim, column = tl.arange(0, H), tl.arange(0, D)
    c, s = _angles(cos, sin, row, HALF, H)
    head = row.to(tl.int64) * (GROUP + 2) * KV_HEADS + GROUP * KV_HEADS + kv_head
    at = qkv + head * 2 * HALF + dim
    left = tl.load(at, mask=dim < HALF, other=0.0).to(tl.float32)
    right = tl.load(at + HALF, mask=dim < HALF, other=0.0).to(tl.float32)
    dtype = qkv.dtype.element_ty
    key_left, key_right = (left * c - right * s).to(dtype), (right * c + left * s).to(dtype)
    at = qkv + (head + KV_HEADS) * 2 * HALF + column
    value = tl.load(at, mask=column < 2 * HALF, other=0.0)
    slot = tl.load(slots + row) * KV_HEADS + kv_head
    stored_left, stored_right, stored_value = key_left, key_right, value
    if key_scales is not None:
        key_scale, stored_left, stored_right = _quantize_key(key_left, key_right)
        value_scale, stored_value = _quantize_value(value)
        key_left, key_right = (stored_left * key_scale).to(dtype), (stored_right * key_scale).to(dtype)
        value = (stored_value * value_scale).to(dtype)
        if is_written:
            tl.store(key_scales + slot, key_scale)
            tl.store(value_scales + slot, value_scale)
    if is_written:
        key_at = keys + slot * 2 * HALF + dim
        tl.store(key_at, stored_left.to(keys.dtype.element_ty), mask=dim < HALF)
        tl.store(key_at + HALF, stored_right.to(keys.dtype.element_ty), mask=dim < HALF)
        value_at = values + slot * 2 * HALF + column
        tl.store(value_at, stored_value.to(values.dtype.element_ty), mask=column < 2 * HALF)
    return key_left, key_right, value


@triton.jit
def _angles(cos, sin, row, HALF: tl.constexpr, H: tl.constexpr):
    """Return the cosines and the sines of one row, both fp32 [H]."""
    dim = tl.arange(0, H)
    at = row.to(tl.int64) * HALF + dim
    c = tl.load(cos + at, mask=dim < HALF, other=0.0)
    return c.to(tl.float32), tl.load(sin + at, mask=dim < HALF, other=0.0).to(tl.float32)


@triton.jit
def _quantize_key(left, right):
    """Return the scale of a key, and the fp32 codes of its halves. The scale of a NaN or infinity is NaN."""
    left, right = left.to(tl.float32), right.to(tl.float32)
    top = tl.maximum(tl.max(tl.abs(left), 0), tl.max(tl.abs(right), 0)) + tl.sum(left * 0 + right * 0, 0)
    scale = int8_row_scale(top)
    return scale, int8_codes(left, scale), int8_codes(right, scale)


@triton.jit
def _quantize_value(value):
    """Return the scale of a value, and its codes in fp32. The scale of a NaN or infinity is NaN."""
    value = value.to(tl.float32)
    scale = int8_row_scale(tl.max(tl.abs(value), 0) + tl.sum(value * 0, 0))
    return scale, int8_codes(value, scale)


@triton.jit
def _finish(
    out,
    partials,
    partial_lse,
    counters,
    result,
    lse,
    head,
    segment,
    segments,
    num_used,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
):
    """Write the outputs of one KV head if it has only one segment. Otherwise, write the partial result.

    ``result`` [M, D] is the average of the segment's values, and ``lse`` [M] is the logarithm of its sum of
    exponentials. The program that finishes last combines all partial results.
    """
    if num_used == 1:
        _store(out, result, head * GROUP, GROUP, HALF, M, D)
    else:
        lane, part = tl.arange(0, M), (head * segments + segment) * GROUP
        _store(partials, result, part, GROUP, HALF, M, D)
        tl.store(partial_lse + part + lane, lse, mask=lane < GROUP)
        tl.debug_barrier()  # the atomic operation of one thread publishes the stores of all threads
        if tl.atomic_add(counters + head, 1, sem="acq_rel") == num_used - 1:
            _combine(out, partials, partial_lse, head, segments, num_used, GROUP, HALF, D, S)
            tl.store(counters + head, 0)


@triton.jit
def _store(out, rows, first, GROUP: tl.constexpr, HALF: tl.constexpr, M: tl.constexpr, D: tl.constexpr):
    """Store GROUP of the rows [M, D] in ``out`` [rows, 2 * HALF], from row ``first`` onward."""
    lane, column = tl.arange(0, M), tl.arange(0, D)
    mask = (lane < GROUP)[:, None] & (column < 2 * HALF)[None, :]
    at = out + (first + lane)[:, None] * 2 * HALF + column[None, :]
    tl.store(at, rows.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _combine(
    out,
    partials,
    partial_lse,
    head,
    segments,
    num_used,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
):
    """Write the outputs of one KV head: the average of its segments, weighted by their sums of exponentials.

    Other multiprocessors have written the segments, so loads bypass the first-level cache.
    """
    segment, column = tl.arange(0, S), tl.arange(0, D)
    is_used, is_column = segment < num_used, column < 2 * HALF
    for lane in tl.static_range(GROUP):
        part = (head * segments + segment) * GROUP + lane
        lse = tl.load(partial_lse + part, mask=is_used, other=float("-inf"), cache_modifier=".cg")
        weight = tl.exp(lse - tl.max(lse, 0))
        at = partials + part[:, None] * 2 * HALF + column[None, :]
        mask = is_used[:, None] & is_column[None, :]
        partial = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        result = tl.sum(partial * weight[:, None], 0) / tl.sum(weight, 0)
        out_at = out + (head * GROUP + lane) * 2 * HALF + column
        tl.store(out_at, result.to(out.dtype.element_ty), mask=is_column)
