"""W4A16: 4-bit weights, 16-bit activations. A Triton kernel dequantizes weights during the matrix product."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from llava_worker.model.kernels.interface import PANEL_OUTPUTS, WEIGHT_GROUP, QuantizedWeight
from llava_worker.model.kernels.torch_impl import TorchKernels

__all__ = ["W4A16Kernels"]

_MIN_ROWS, _MAX_ROWS = 16, 64  # rows of x per program; tensor cores require at least 16
_WIDE = 128  # outputs per program if there are many rows; otherwise one panel, to get more programs


class W4A16Kernels(TorchKernels):
    """Kernels that pack weights like `TorchKernels` but do not quantize activations.

    The values of codes are evenly spaced. The kernel computes them, which is faster than a lookup.
    """

    def __init__(self) -> None:
        """Check that Triton is installed. Raises ValueError if it is not."""
        if importlib.util.find_spec("triton") is None:
            raise ValueError("Precision w4a16 requires Triton. Run pip install triton, or use fp16 or bf16.")
        super().__init__()

    @property
    def name(self) -> str:
        return "Triton"

    def codebook(self, bits: int) -> tuple[int, ...]:
        """Return the integers from -8 to 7. Raises ValueError unless ``bits`` is 4."""
        if bits != 4:
            raise ValueError(f"Triton kernels support 4-bit weights, not {bits}-bit weights.")
        return tuple(range(-8, 8))

    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        """Return x W^T + b for an int4 W and an fp32 b."""
        from llava_worker.model.kernels.triton_int4_linear import int4_linear

        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty(len(rows), weight.out_features, dtype=x.dtype, device=x.device)
        half = weight.padded_in_features // 2
        num_rows = min(_MAX_ROWS, max(_MIN_ROWS, 1 << (len(rows) - 1).bit_length()))
        width = PANEL_OUTPUTS if num_rows == _MIN_ROWS else _WIDE
        grid = (-(-len(rows) // num_rows), -(-weight.out_features // width))
        int4_linear[grid](
            *(y, rows, weight.packed, weight.scales, y if bias is None else bias),
            *(len(rows), weight.in_features, weight.out_features, half),
            HAS_BIAS=bias is not None,
            GROUP=WEIGHT_GROUP,
            PANEL=PANEL_OUTPUTS,
            M=num_rows,
            N=width,
            K=WEIGHT_GROUP if half % WEIGHT_GROUP == 0 else WEIGHT_GROUP // 2,
        )
        return y.view(*x.shape[:-1], weight.out_features)

    def pack_weight(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        super().pack_weight(rows.to(weight.packed.device), first, weight)
