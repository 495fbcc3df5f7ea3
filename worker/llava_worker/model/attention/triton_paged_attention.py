"""The paged attention kernel in Triton, for NVIDIA GPUs and the Triton interpreter.

This module requires the triton package, so import it only right before launching the kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["paged_attention"]


@triton.jit
def paged_attention(
    out,  # [tokens, heads, head_dim]
    q,  # [tokens, heads, head_dim]
    keys,  # [slots, kv_heads, head_dim], like values
    values,
    starts,  # int32 [rows + 1]
    contexts,  # int32 [rows]
    tables,  # int32 [rows, blocks]
    scale,
    q_stride,  # elements between consecutive tokens
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
    query = tl.load(q + token * q_stride + offset, mask=q_mask, other=0.0)
    first = context - num_new + part * QUERIES
    end = tl.minimum(context, first + QUERIES)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first - WINDOW + 1, 0) // N * N
    row_max = tl.full([M], float("-inf"), tl.float32)
    row_sum = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for block_start in range(begin, end, N):
        position = block_start + tl.arange(0, N)
        block = tl.load(tables + row * table_stride + position // BLOCK_SIZE, mask=position < end, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        kv_offset = (slot[:, None] * KV_HEADS + kv_head) * HEAD_DIM + dim[None, :]
        kv_mask = (position < end)[:, None] & (
            dim[None, :] < HEAD_DIM
        )  # the contents of other slots are undefined
        key = tl.load(keys + kv_offset, mask=kv_mask, other=0.0)
        value = tl.load(values + kv_offset, mask=kv_mask, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        row_max, row_sum, acc = _update(score, value, position, query_position, WINDOW, row_max, row_sum, acc)
    result = acc / tl.where(is_query, row_sum, 1.0)[:, None]
    out_at = out + token * (KV_HEADS * GROUP * HEAD_DIM) + offset
    tl.store(out_at, result.to(out.dtype.element_ty), mask=q_mask)


@triton.jit
def _update(score, value, position, query_position, WINDOW: tl.constexpr, row_max, row_sum, acc):
    """Add N context positions to the online softmax. ``row_sum`` and ``acc`` are scaled by e ** -row_max."""
    is_seen = position[None, :] <= query_position[:, None]
    if WINDOW > 0:
        is_seen = is_seen & (position[None, :] > query_position[:, None] - WINDOW)
    score = tl.where(is_seen, score, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(score, 1))
    base = tl.where(
        new_max == float("-inf"), 0.0, new_max
    )  # new_max is -inf if all positions so far are masked
    weight = tl.exp(score - base[:, None])
    rescale = tl.exp(row_max - base)
    row_sum = row_sum * rescale + tl.sum(weight, 1)
    acc = acc * rescale[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return new_max, row_sum, acc
