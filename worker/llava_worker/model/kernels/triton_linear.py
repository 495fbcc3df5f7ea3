"""Weights in 4 bits, activations in 16: a kernel in Triton that unpacks the weight where it is multiplied."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from llava_worker.model.kernels.interface import GROUP, PANEL, QuantizedWeight
from llava_worker.model.kernels.torch_impl import TorchKernels

__all__ = ["TritonLinearKernels"]

_LEAST_DOT, _MOST_ROWS = 16, 64  # rows of x that one program takes
_WIDE = 128  # outputs of one program where rows are many; of few rows a panel, for more programs


class TritonLinearKernels(TorchKernels):
    """Bytes lie as torch's kernels lay them. What goes into a layer is not rounded."""

    def __init__(self) -> None:
        """Raises ValueError without Triton."""
        if importlib.util.find_spec("triton") is None:
            raise ValueError("precision w4a16 needs Triton: pip install triton, or use fp16 or bf16")

    @property
    def name(self) -> str:
        return "Triton"

    def quantized(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        """As `dense`, but that W is in 4 bits and bias in fp32."""
        from llava_worker.model.kernels.triton_paged_int4 import int4_linear

        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty(len(rows), weight.outputs, dtype=x.dtype, device=x.device)
        half = weight.padded // 2
        tile = min(_MOST_ROWS, max(_LEAST_DOT, 1 << (len(rows) - 1).bit_length()))
        width = PANEL if tile == _LEAST_DOT else _WIDE
        grid = (-(-len(rows) // tile), -(-weight.outputs // width))
        int4_linear[grid](
            *(y, rows, weight.packed, weight.scales, y if bias is None else bias),
            *(len(rows), weight.inputs, weight.outputs, half),
            HAS_BIAS=bias is not None,
            GROUP=GROUP,
            PANEL=PANEL,
            M=tile,
            N=width,
            K=GROUP if half % GROUP == 0 else GROUP // 2,
        )
        return y.view(*x.shape[:-1], weight.outputs)

    def pack(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        super().pack(rows.to(weight.packed.device), first, weight)
