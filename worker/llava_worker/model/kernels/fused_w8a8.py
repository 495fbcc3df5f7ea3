"""Launches the Triton kernels for W8A8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava_worker.model.kernels.split_tiles import MAX_SPLITS, SplitTiles, Tile
from llava_worker.model.kernels.triton_launch import LAUNCH_OPTIONS, dense, next_power_of_two
from llava_worker.model.kernels.w8a8 import QuantizedRows, W8A8Format

__all__ = ["MAX_ROWS", "linear", "quantize", "rms_norm", "scale_products", "silu_and_mul"]

_FEW = Tile(16, 64, parts=1, num_warps=4, num_stages=5, programs=2)  # for up to 16 rows
_MANY = Tile(64, 128, parts=1, num_warps=8, num_stages=3, programs=1)
MAX_ROWS = 256  # for `linear`; with more rows, torch's products are faster
_INPUTS = 128  # per iteration
_SCALED_WIDTH = 1024  # elements of a row that one program scales


def rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fmt: W8A8Format
) -> tuple[QuantizedRows, Tensor]:
    """Return the quantized norm of x + residual [rows, size], and x + residual."""
    from llava_worker.model.kernels.triton_w8a8 import rms_norm_w8a8

    x, out = dense(x), _empty_rows(x.shape[0], x.shape[1], fmt, x.device)
    total = None if residual is None else torch.empty_like(x)
    if len(x):
        rms_norm_w8a8[(len(x),)](
            *(*out, total, x, None if residual is None else dense(residual), weight, x.shape[1], eps),
            **_row_options(x.shape[1]),
        )
    return out, x if total is None else total


def silu_and_mul(x: Tensor, fmt: W8A8Format) -> QuantizedRows:
    """Return the quantized silu(left half) * right half of x [rows, 2 * size]."""
    from llava_worker.model.kernels.triton_w8a8 import silu_and_mul_w8a8

    x, size = dense(x), x.shape[1] // 2
    out = _empty_rows(len(x), size, fmt, x.device)
    if len(x):
        silu_and_mul_w8a8[(len(x),)](*out, x, size, **_row_options(size))
    return out


def quantize(x: Tensor, fmt: W8A8Format) -> QuantizedRows:
    """Quantize x [rows, size]."""
    from llava_worker.model.kernels.triton_w8a8 import quantize_w8a8

    x, out = dense(x), _empty_rows(x.shape[0], x.shape[1], fmt, x.device)
    if len(x):
        quantize_w8a8[(len(x),)](*out, x, x.shape[1], **_row_options(x.shape[1]))
    return out


def linear(x: QuantizedRows, w: QuantizedRows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return x W^T + b for up to MAX_ROWS rows."""
    from llava_worker.model.kernels.triton_w8a8 import linear_w8a8

    (rows, inputs), outputs = x.codes.shape, len(w.codes)
    y = torch.empty(rows, outputs, dtype=dtype, device=x.codes.device)
    tile = _FEW if rows <= _FEW.rows else _MANY
    tiles = SplitTiles.choose(tile, rows, outputs, -(-inputs // _INPUTS), y.device)
    sums = torch.int32 if w.codes.dtype == torch.int8 else torch.float32
    if rows:
        linear_w8a8[tiles.grid](
            *(y, tiles.partials(sums), tiles.counters(), dense(x.codes), x.scales, w.codes, w.scales, bias),
            *(rows, inputs, outputs, tiles.splits, tiles.steps),
            M=tile.rows,
            N=tile.outputs,
            K=_INPUTS,
            MAX_SPLITS=MAX_SPLITS,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **LAUNCH_OPTIONS,
        )
    return y


def scale_products(
    products: Tensor, x_scales: Tensor, w_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Scale sums of products of int8 codes, int32 [rows, outputs], and add the bias."""
    from llava_worker.model.kernels import triton_w8a8

    y = torch.empty(products.shape, dtype=dtype, device=products.device)
    rows, outputs = y.shape
    triton_w8a8.scale_products[rows, -(-outputs // _SCALED_WIDTH)](
        *(y, products, x_scales, w_scales, bias, outputs), N=_SCALED_WIDTH, **LAUNCH_OPTIONS
    )
    return y


def _empty_rows(rows: int, size: int, fmt: W8A8Format, device: torch.device) -> QuantizedRows:
    codes = torch.empty(rows, size, dtype=fmt.dtype, device=device)
    return QuantizedRows(codes, torch.empty(rows, 1, dtype=torch.float32, device=device))


def _row_options(size: int) -> dict[str, Any]:
    """Return the options of a kernel that processes one row of this size per program."""
    width = next_power_of_two(size)
    return {"N": width, "num_warps": min(16, max(4, width // 512)), **LAUNCH_OPTIONS}
