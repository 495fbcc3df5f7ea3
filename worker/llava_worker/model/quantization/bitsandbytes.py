"""Linear layers that use bitsandbytes: LLM.int8(), and NF4 with double quantization.

These formats save memory, not time. Rows are quantized while they are loaded, so the whole original weight
is never in memory. The bitsandbytes package is imported when the first layer is used.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias

__all__ = ["BnbInt8Linear", "BnbNF4Linear", "has_bitsandbytes", "require_bitsandbytes"]

# Columns of x in which a magnitude exceeds this are multiplied in 16 bits (LLM.int8(), arXiv 2208.07339).
_OUTLIER_THRESHOLD = 6.0
_BLOCK = 64  # weights per scale in NF4
_SCALES_BLOCK = 256  # scales per second-level scale


def has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def require_bitsandbytes(precision: str) -> None:
    """Raise ValueError if bitsandbytes is not installed."""
    if not has_bitsandbytes():
        raise ValueError(
            f"Precision {precision} on a GPU requires bitsandbytes. Run pip install 'bitsandbytes>=0.49', or "
            "use w8a8 or w4a16."
        )


class BnbInt8Linear(Linear):
    """A layer that quantizes W and x to int8 with one scale per row, but keeps outliers of x in 16 bits."""

    def __init__(self, shape: LinearShape, *, device: torch.device) -> None:
        super().__init__(shape)
        codes = torch.zeros(shape.out_features, shape.in_features, dtype=torch.int8, device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(torch.zeros(shape.out_features, device=device), requires_grad=False)
        self.bias = empty_bias(shape, torch.float16, device)  # the compute dtype of bitsandbytes

    def __call__(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        state = bnb.MatmulLtState()
        state.CB, state.SCB = self.codes.data, self.scales.data
        state.threshold, state.has_fp16_weights, state.is_training = _OUTLIER_THRESHOLD, False, False
        y: Tensor = bnb.matmul(x.half(), self.codes.data, state=state, bias=self.bias)
        return y.to(x.dtype)

    def load_rows(self, start: int, rows: Tensor) -> None:
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, scales, _ = int8_vectorwise_quant(rows.to(self.codes.device, torch.float16))
        self.codes[start : start + len(rows)] = codes
        self.scales[start : start + len(rows)] = scales


class BnbNF4Linear(Linear):
    """A layer that stores W in NF4 and dequantizes it to the dtype of x during the matrix product."""

    def __init__(self, shape: LinearShape, *, dtype: torch.dtype, device: torch.device) -> None:
        """Create a layer. Raises ValueError unless ``in_features`` is a multiple of the NF4 block size."""
        super().__init__(shape)
        if shape.in_features % _BLOCK:
            raise ValueError(
                f"A layer has {shape.in_features} inputs; NF4 requires a multiple of {_BLOCK}. Use int8."
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
        self._fp32_scales: Tensor | None = None  # only during loading
        self._state: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        y: Tensor = bnb.matmul_4bit(x, self.packed.data.t(), quant_state=self._state, bias=self.bias)
        return y

    def load_rows(self, start: int, rows: Tensor) -> None:
        from bitsandbytes.functional import quantize_4bit

        if self._fp32_scales is None:
            self._fp32_scales = torch.zeros(len(self.scales), device=self.packed.device)
        rows = rows.to(self.packed.device, self._dtype).contiguous()
        packed, state = quantize_4bit(rows, blocksize=_BLOCK, quant_type="nf4")
        first = start * self._row_blocks
        self.packed[first * _BLOCK // 2 : first * _BLOCK // 2 + len(packed)] = packed
        self._fp32_scales[first : first + len(state.absmax)] = state.absmax
        self._num_loaded += len(rows)
        if self._num_loaded == self.shape.out_features:
            self._quantize_scales(self._fp32_scales)
            self._fp32_scales, self._num_loaded = None, 0

    def _quantize_scales(self, scales: Tensor) -> None:
        """Quantize all scales relative to their mean."""
        from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise

        mean = scales.mean()
        codes, state = quantize_blockwise(scales - mean, blocksize=_SCALES_BLOCK)
        self.scales.copy_(codes)
        self.outer_scales.copy_(state.absmax)
        state.absmax = self.outer_scales.data
        self._state = QuantState(
            absmax=self.scales.data,
            shape=torch.Size((self.shape.out_features, self.shape.in_features)),
            dtype=self._dtype,
            blocksize=_BLOCK,
            code=get_4bit_type("nf4", device=scales.device),
            quant_type="nf4",
            offset=mean,
            state2=state,
        )
