"""The Triton kernels for linear layers with int4 weights (W4A16), for GPUs and the Triton interpreter.

This module requires the triton package, so import it only right before launching the kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llava_worker.model.kernels.triton_split_sum import sum_of_splits

__all__ = ["int4_dequantize", "int4_linear"]


@triton.jit(do_not_specialize=["rows", "splits", "steps"])
def int4_linear(
    y,  # [rows, outputs]
    partials,  # fp32 [row tiles * output tiles * splits, M, N]
    counters,  # int32 [row tiles * output tiles], all 0
    x,  # [rows, inputs]
    packed,  # int16 [lanes, padded inputs / (4 * K), K], see W4A16Kernels.pack_codes
    scales,  # bf16 [lanes / PANEL, groups, PANEL]
    bias,  # fp32 [outputs], or None
    rows,
    inputs,
    outputs,
    groups,
    splits,
    steps,  # iterations of each split, except that the last split can have fewer
    GROUP: tl.constexpr,  # inputs per scale
    PANEL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,  # inputs per product
    PARTS: tl.constexpr,  # words per iteration and output, divided by K
    MAX_SPLITS: tl.constexpr,  # >= splits
):
    """Compute y = x W^T + b. A program handles M rows, N outputs and one of the splits of the inputs."""
    split = tl.program_id(2)
    row = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    lane, element = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, K)
    # Instead of masking weights, lanes and words that do not exist read the last ones.
    read_lane = tl.minimum(lane, outputs - 1)
    lane_scales = scales + (read_lane // PANEL) * groups * PANEL + read_lane % PANEL
    chunks = groups * GROUP // (4 * K)
    lane_packed = packed + read_lane.to(tl.int64)[None, :] * chunks * K
    acc = tl.zeros([M, N], tl.float32)
    first = split * steps * PARTS
    for start in range(first, tl.minimum(first + steps * PARTS, chunks), PARTS):
        for part in tl.static_range(PARTS):
            chunk = tl.minimum(start + part, chunks - 1)
            word = tl.load(lane_packed + (chunk * K + element)[:, None])
            for nibble in tl.static_range(4):
                column = ((start + part) * 4 * K + nibble * K + element)[None, :]
                value = tl.load(x + row * inputs + column, mask=(row < rows) & (column < inputs), other=0.0)
                scale = tl.load(lane_scales + (chunk * 4 * K + nibble * K) // GROUP * PANEL)
                w = _integers(word, nibble, value.dtype)
                if M == 16:
                    acc += tl.dot(value, w, input_precision="ieee") * scale.to(tl.float32)[None, :]
                else:  # scaling weights takes fewer registers than scaling products
                    acc = tl.dot(value, w * scale.to(w.dtype)[None, :], acc, input_precision="ieee")
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    acc, is_last = sum_of_splits(acc, partials, counters, tile, split, splits, M, N, MAX_SPLITS)
    if is_last:
        if bias is not None:
            acc += tl.load(bias + lane, mask=lane < outputs, other=0.0)[None, :]
        y_at = y + row * outputs + lane[None, :]
        tl.store(y_at, acc.to(y.dtype.element_ty), mask=(row < rows) & (lane < outputs)[None, :])


@triton.jit
def int4_dequantize(
    w,  # [outputs, inputs]
    packed,  # as for int4_linear, like scales
    scales,
    inputs,
    outputs,
    groups,
    GROUP: tl.constexpr,
    PANEL: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Write W. A program handles K words of each of N outputs."""
    lane, element, chunk = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, K), tl.program_id(1)
    is_lane, row = (lane < outputs)[:, None], lane.to(tl.int64)[:, None]
    lane_scales = scales + (lane // PANEL) * groups * PANEL + lane % PANEL
    at = packed + row * (groups * GROUP // 4) + (chunk * K + element)[None, :]
    word = tl.load(at, mask=is_lane, other=0)
    for nibble in tl.static_range(4):
        first = chunk * 4 * K + nibble * K
        scale = tl.load(lane_scales + first // GROUP * PANEL, mask=lane < outputs, other=0.0)
        value = _integers(word, nibble, tl.float32) * scale.to(tl.float32)[:, None]
        column = (first + element)[None, :]
        tl.store(w + row * inputs + column, value.to(w.dtype.element_ty), mask=is_lane & (column < inputs))


@triton.jit
def _integers(word, nibble: tl.constexpr, dtype: tl.constexpr):
    """Return code - 8 for one of the four codes in ``word``, int16.

    A conversion from integers is slow. Instead, the code becomes the lowest bits of the mantissa of a number
    whose unit in the last place is 1: 1024 in fp16, and 128 in bf16. In fp16, the mantissa is long enough to
    read a code in the next four bits without a shift. All results are exact.
    """
    if dtype == tl.float16:
        pair = word >> 8 if nibble >= 2 else word
        if nibble % 2:
            return ((pair & 0xF0) | 0x6400).to(tl.float16, bitcast=True) * 0.0625 - 72.0
        return ((pair & 0xF) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
    if dtype == tl.bfloat16:
        return ((word >> (4 * nibble) & 0xF) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    return (word >> (4 * nibble) & 0xF).to(dtype) - 8.0
