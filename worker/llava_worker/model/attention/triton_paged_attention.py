"""The paged attention kernel in Triton, for NVIDIA GPUs and the Triton interpreter.

This module requires the triton package, so import it only right before launching the kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llava_worker.model.attention.triton_softmax import add_positions

__all__ = ["paged_attention"]


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["starts", "contexts", "tables"],
)
def paged_attention(
    out,  # [tokens, heads, head_dim]
    q,  # [tokens, heads, head_dim]
    keys,  # [slots, kv_heads, head_dim], like values; int8 if there are scales
    values,
    key_scales,  # fp32 [slots, kv_heads], like value_scales; None if keys are not int8
    value_scales,
    starts,  # int32 [rows + 1]
    contexts,  # int32 [rows]
    tables,  # int32 [rows, blocks]
    scale,
    table_stride,
    WINDOW: tl.constexpr,  # window in tokens, including the current token; 0 means unlimited
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads per KV head
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,  # query tokens per program
    M: tl.constexpr,  # >= QUERIES * GROUP
    N: tl.constexpr,  # context positions per iteration
    D: tl.constexpr,  # >= HEAD_DIM
):
    """Compute attention with online softmax. A program handles QUERIES tokens of one row and one KV head."""
    row, part, kv_head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    num_new = tl.load(starts + row + 1) - start
    context = tl.load(contexts + row)
    if part * QUERIES >= num_new:
        return
    lane, dim = tl.arange(0, M), tl.arange(0, D)
    token = part * QUERIES + lane // GROUP
    is_query = (lane < QUERIES * GROUP) & (token < num_new)
    query_position = context - num_new + token  # within the sequence
    head = kv_head * GROUP + lane % GROUP
    offset = head[:, None] * HEAD_DIM + dim[None, :]
    q_mask = is_query[:, None] & (dim[None, :] < HEAD_DIM)
    token = (start + token).to(tl.int64)[:, None]
    at = token * (KV_HEADS * GROUP * HEAD_DIM) + offset
    query = tl.load(q + at, mask=q_mask, other=0.0)
    first = context - num_new + part * QUERIES
    end = tl.minimum(context, first + QUERIES)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first - WINDOW + 1, 0) // N * N
    row_sum, acc = _attend(
        *(query, query_position, keys, values, key_scales, value_scales, tables + row * table_stride),
        *(scale, kv_head, begin, end, WINDOW, KV_HEADS, HEAD_DIM, BLOCK_SIZE, M, N, D),
    )
    result = acc / tl.where(is_query, row_sum, 1.0)[:, None]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=q_mask)


@triton.jit
def _attend(
    query,
    query_position,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    scale,
    kv_head,
    begin,
    end,
    WINDOW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
):
    """Return row_sum [M] and acc [M, D] for the positions from ``begin`` to ``end``."""
    dim = tl.arange(0, D)
    row_max, row_sum = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for start in range(begin, end, N):
        position = start + tl.arange(0, N)
        is_read = position < end  # the contents of other slots are undefined
        block = tl.load(table + position // BLOCK_SIZE, mask=is_read, other=0)
        slot = (block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE) * KV_HEADS + kv_head
        at, mask = slot[:, None] * HEAD_DIM + dim[None, :], is_read[:, None] & (dim < HEAD_DIM)[None, :]
        key = tl.load(keys + at, mask=mask, other=0.0).to(query.dtype)
        value = tl.load(values + at, mask=mask, other=0.0).to(query.dtype)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        value_scale = None
        if key_scales is not None:
            score *= tl.load(key_scales + slot, mask=is_read, other=0.0)[None, :]
            value_scale = tl.load(value_scales + slot, mask=is_read, other=0.0)
        is_seen = position[None, :] <= query_position[:, None]
        if WINDOW > 0:
            is_seen = is_seen & (position[None, :] > query_position[:, None] - WINDOW)
        score = tl.where(is_seen, score, float("-inf"))
        row_max, row_sum, acc = add_positions(score, value, value_scale, row_max, row_sum, acc)
    return row_sum, acc
