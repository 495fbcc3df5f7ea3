"""Linear layers that bitsandbytes keeps and multiplies: LLM.int8(), and NF4 with its scales quantised again.

Rows are quantised as they arrive, so that a layer never stands beside its original. The library is imported
when the first layer is made; it saves memory rather than time.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias

__all__ = ["Bnb4Linear", "Bnb8Linear", "has_bitsandbytes", "require_bitsandbytes"]

_OUTLIER = (
    6.0  # an input beyond it is multiplied in 16 bit with all that stand in its column (LLM.int8(), 2022)
)
_BLOCK = 64  # numbers that share a scale in NF4
_SCALES_BLOCK = 256  # scales that share one of their own


def has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def require_bitsandbytes(precision: str) -> None:
    """Raises ValueError that says what to install."""
    if not has_bitsandbytes():
        raise ValueError(
            f"precision {precision} on a GPU needs bitsandbytes: pip install 'bitsandbytes>=0.49'; "
            "w8a8 and w4a16 do without"
        )


class Bnb8Linear(Linear):
    """W in 8 bits with a scale a row; x in 8 bits with a scale a row, but for its outliers."""

    def __init__(self, shape: LinearShape, *, device: torch.device) -> None:
        super().__init__(shape)
        codes = torch.zeros(shape.out_features, shape.in_features, dtype=torch.int8, device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(torch.zeros(shape.out_features, device=device), requires_grad=False)
        self.bias = empty_bias(shape, torch.float16, device)  # what the library computes in

    def __call__(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        state = bnb.MatmulLtState()
        state.CB, state.SCB = self.codes.data, self.scales.data
        state.threshold, state.has_fp16_weights, state.is_training = _OUTLIER, False, False
        y: Tensor = bnb.matmul(x.half(), self.codes.data, state=state, bias=self.bias)
        return y.to(x.dtype)

    def load_rows(self, start: int, rows: Tensor) -> None:
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, scales, _ = int8_vectorwise_quant(rows.to(self.codes.device, torch.float16))
        self.codes[start : start + len(rows)] = codes
        self.scales[start : start + len(rows)] = scales


class Bnb4Linear(Linear):
    """W in NF4, unpacked to x's dtype as it is multiplied."""

    def __init__(self, shape: LinearShape, *, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ValueError for rows that are not whole blocks."""
        super().__init__(shape)
        if shape.in_features % _BLOCK:
            raise ValueError(
                f"a layer has {shape.in_features} inputs, and NF4 takes multiples of {_BLOCK}: use int8"
            )
        self._row_blocks = shape.in_features // _BLOCK
        num_blocks = shape.out_features * self._row_blocks
        packed = torch.zeros(num_blocks * _BLOCK // 2, 1, dtype=torch.uint8, device=device)
        self.packed = nn.Parameter(packed, requires_grad=False)
        scales = torch.zeros(num_blocks, dtype=torch.uint8, device=device)
        self.scales = nn.Parameter(scales, requires_grad=False)
        outer = torch.zeros(-(-num_blocks // _SCALES_BLOCK), device=device)
        self.outer_scales = nn.Parameter(outer, requires_grad=False)
        self.bias = empty_bias(shape, dtype, device)
        self._dtype = dtype
        self._num_loaded = 0
        self._exact_scales: Tensor | None = None  # fp32, until all rows are there
        self._state: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        y: Tensor = bnb.matmul_4bit(x, self.packed.data.t(), quant_state=self._state, bias=self.bias)
        return y

    def load_rows(self, start: int, rows: Tensor) -> None:
        from bitsandbytes.functional import quantize_4bit

        if self._exact_scales is None:
            self._exact_scales = torch.zeros(len(self.scales), device=self.packed.device)
        whole = rows.to(self.packed.device, self._dtype).contiguous()
        packed, state = quantize_4bit(whole, blocksize=_BLOCK, quant_type="nf4")
        first = start * self._row_blocks
        self.packed[first * _BLOCK // 2 : first * _BLOCK // 2 + len(packed)] = packed
        self._exact_scales[first : first + len(state.absmax)] = state.absmax
        self._num_loaded += len(rows)
        if self._num_loaded == self.shape.out_features:
            self._seal(self._exact_scales)
            self._exact_scales, self._num_loaded = None, 0

    def _seal(self, exact: Tensor) -> None:
        """Quantise the scales, which takes all of them: what they are counted from is their mean."""
        from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise

        mean = exact.mean()
        codes, state = quantize_blockwise(exact - mean, blocksize=_SCALES_BLOCK)
        self.scales.copy_(codes)
        self.outer_scales.copy_(state.absmax)
        state.absmax = self.outer_scales.data
        self._state = QuantState(
            absmax=self.scales.data,
            shape=torch.Size((self.shape.out_features, self.shape.in_features)),
            dtype=self._dtype,
            blocksize=_BLOCK,
            code=get_4bit_type("nf4", device=exact.device),
            quant_type="nf4",
            offset=mean,
            state2=state,
        )
