"""The linear layer for 8, 5 and 4-bit weights on a CPU, and for 4-bit weights (W4A16) on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.kernels.interface import PANEL_OUTPUTS, WEIGHT_GROUP, Kernels, QuantizedWeight
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias
from llava_worker.model.lazy_memory import zeros

__all__ = ["QuantizedLinear"]


class QuantizedLinear(Linear):
    """A layer that quantizes rows while they are loaded, so the whole original weight is never in memory."""

    def __init__(self, shape: LinearShape, *, bits: int, kernels: Kernels, device: torch.device) -> None:
        super().__init__(shape)
        panels = -(-shape.out_features // PANEL_OUTPUTS)
        groups = -(-shape.in_features // WEIGHT_GROUP)
        panel_bytes = PANEL_OUTPUTS * groups * WEIGHT_GROUP * bits // 8
        packed = zeros((panels, panel_bytes), torch.uint8, device)
        scales = (
            torch.zeros(shape.out_features, device=device)
            if bits == 8
            else torch.zeros(panels, groups, PANEL_OUTPUTS, dtype=torch.bfloat16, device=device)
        )
        codebook = (
            None if bits == 8 else torch.tensor(kernels.codebook(bits), dtype=torch.int8, device=device)
        )
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = empty_bias(shape, torch.float32, device)
        self._kernels = kernels
        self._bits, self._codebook = bits, codebook
        self.use_parameters()

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.quantized_linear(x, self.weight, self.bias)

    @property
    def packing(self) -> str:
        return self._kernels.packing

    def use_parameters(self) -> None:
        size, packed, scales = self.shape, self.packed.data, self.scales.data
        self.weight = QuantizedWeight(
            self._bits, size.in_features, size.out_features, packed, scales, self._codebook
        )

    def load_rows(self, start: int, rows: Tensor) -> None:
        self._kernels.pack_weight(rows, start, self.weight)
