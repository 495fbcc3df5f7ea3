"""The linear layer whose weight is kept in 8 or 4 bits a number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.kernels.interface import GROUP, PANEL, Kernels, QuantizedWeight
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias

__all__ = ["QuantizedLinear"]


class QuantizedLinear(Linear):
    """Rows are quantised as they arrive: beside the weight itself, only what is being read takes memory."""

    def __init__(self, shape: LinearShape, *, bits: int, kernels: Kernels, device: torch.device) -> None:
        super().__init__(shape)
        panels = -(-shape.out_features // PANEL)
        groups = -(-shape.in_features // GROUP)
        packed = torch.zeros(panels, PANEL * groups * GROUP * bits // 8, dtype=torch.uint8, device=device)
        scales = (
            torch.zeros(shape.out_features, device=device)
            if bits == 8
            else torch.zeros(panels, groups, PANEL, dtype=torch.bfloat16, device=device)
        )
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = empty_bias(shape, torch.float32, device)
        self._weight = QuantizedWeight(bits, shape.in_features, shape.out_features, packed, scales)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.quantized(x, self._weight, self.bias)

    def load_rows(self, start: int, rows: Tensor) -> None:
        self._kernels.pack(rows, start, self._weight)
