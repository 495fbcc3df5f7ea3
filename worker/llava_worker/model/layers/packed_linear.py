"""A linear layer whose bf16 weight is packed for the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.kernels.interface import PANEL_OUTPUTS
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias
from llava_worker.model.lazy_memory import zeros

__all__ = ["PackedLinear"]


class PackedLinear(Linear):
    """A layer that packs rows while they are loaded. The kernels must support this (`packs_bf16`)."""

    def __init__(self, shape: LinearShape, *, kernels: NativeKernels, device: torch.device) -> None:
        super().__init__(shape)
        panels, pairs = -(-shape.out_features // PANEL_OUTPUTS), -(-shape.in_features // 2)
        packed = zeros((panels, pairs, PANEL_OUTPUTS, 2), torch.bfloat16, device)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.bias = empty_bias(shape, torch.bfloat16, device)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.packed_bf16_linear(x, self.packed, self.shape.out_features, self.bias)

    @property
    def packing(self) -> str:
        return self._kernels.packing

    def load_rows(self, start: int, rows: Tensor) -> None:
        self._kernels.pack_bf16_weight(rows, start, self.packed)
