"""The Triton kernel for linear layers with int4 weights (W4A16), for GPUs and the Triton interpreter.

This module requires the triton package, so import it only right before launching the kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["int4_linear"]


@triton.jit
def int4_linear(
    y,  # [rows, outputs]
    x,  # [rows, inputs]
    packed,  # uint8 [lanes, half]: input i in the low half, input half + i in the high half, both offset by 8
    scales,  # bf16 [lanes / PANEL, groups, PANEL]
    bias,  # fp32 [outputs]
    rows,
    inputs,
    outputs,
    half,  # bytes per row of W, including padding
    HAS_BIAS: tl.constexpr,
    GROUP: tl.constexpr,  # inputs per scale
    PANEL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,  # bytes per iteration, all within one group
):
    """Compute y = x W^T + b. A program handles M rows and N outputs.

    Partial sums are scaled group by group.
    """
    row = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    lane = tl.program_id(1) * N + tl.arange(0, N)
    is_lane = lane < outputs
    groups = 2 * half // GROUP
    lane_scales = scales + (lane // PANEL) * groups * PANEL + lane % PANEL
    acc = tl.zeros([M, N], tl.float32)
    for start in range(0, half, K):
        byte = start + tl.arange(0, K)
        both = tl.load(
            packed + lane.to(tl.int64)[None, :] * half + byte[:, None], mask=is_lane[None, :], other=0
        )
        low, high = both & 15, both >> 4
        for part in tl.static_range(2):
            first = start + part * half
            column = (byte + part * half)[None, :]
            value = tl.load(x + row * inputs + column, mask=(row < rows) & (column < inputs), other=0.0)
            code = high if part else low
            w = (code.to(tl.int8) - 8).to(value.dtype)
            scale = tl.load(lane_scales + first // GROUP * PANEL, mask=is_lane, other=0.0).to(tl.float32)
            acc += tl.dot(value, w, input_precision="ieee") * scale[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + lane, mask=is_lane, other=0.0)[None, :]
    y_at = y + row * outputs + lane[None, :]
    tl.store(y_at, acc.to(y.dtype.element_ty), mask=(row < rows) & is_lane[None, :])
