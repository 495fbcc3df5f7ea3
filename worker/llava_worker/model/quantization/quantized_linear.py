"""The linear layer for int8 and int4 weights on a CPU, and for int4 weights (W4A16) on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.kernels.interface import INT4_GROUP, PANEL_OUTPUTS, Kernels, QuantizedWeight
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias

__all__ = ["QuantizedLinear"]


class QuantizedLinear(Linear):
    """A layer that quantizes rows while they are loaded, so the whole original weight is never in memory."""

    def __init__(self, shape: LinearShape, *, bits: int, kernels: Kernels, device: torch.device) -> None:
        super().__init__(shape)
        panels = -(-shape.out_features // PANEL_OUTPUTS)
        groups = -(-shape.in_features // INT4_GROUP)
        panel_bytes = PANEL_OUTPUTS * groups * INT4_GROUP * bits // 8
        packed = torch.zeros(panels, panel_bytes, dtype=torch.uint8, device=device)
        scales = (
            torch.zeros(shape.out_features, device=device)
            if bits == 8
            else torch.zeros(panels, groups, PANEL_OUTPUTS, dtype=torch.bfloat16, device=device)
        )
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = empty_bias(shape, torch.float32, device)
        self._weight = QuantizedWeight(bits, shape.in_features, shape.out_features, packed, scales)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.quantized_linear(x, self._weight, self.bias)

    def load_rows(self, start: int, rows: Tensor) -> None:
        self._kernels.pack_weight(rows, start, self._weight)
