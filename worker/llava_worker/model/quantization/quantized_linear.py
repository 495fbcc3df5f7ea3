"""The linear layer for 8, 5 and 4-bit weights on a CPU, and for 4-bit weights (W4A16) on a GPU."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from llava_worker.model.kernels.interface import PANEL_OUTPUTS, WEIGHT_GROUP, Kernels, QuantizedWeight
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias
from llava_worker.model.lazy_memory import zeros
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan

__all__ = ["QuantizedLinear", "self_test"]

# Rows in the self-test of W4A16: the kernels for few and for many rows, and the one that dequantizes weights.
_TEST_ROWS = (1, 16, 70, 300)
_TOLERANCE = 0.02  # relative to the largest element of the product


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
            else zeros((panels, groups, PANEL_OUTPUTS), torch.bfloat16, device)
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


@torch.inference_mode()
def self_test(kernels: TorchKernels, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compare products with 4-bit weights on this device with the exact products with the stored weights.

    Outputs contain NaN until the kernels write to them. Returns a description of the first error, or None if
    there is none.
    """
    noise = torch.Generator().manual_seed(0)
    shape = LinearShape.plain(1152, 160, has_bias=True)
    layer = QuantizedLinear(shape, bits=4, kernels=kernels, device=device)
    bias = torch.randn(160, generator=noise)
    layer.load_rows(0, torch.randn(160, 1152, generator=noise))
    layer.load_bias(0, bias)
    weight = _stored_weight(layer, kernels)
    for num_rows in _TEST_ROWS:
        x = torch.randn(num_rows, 1152, generator=noise).to(dtype)
        expected = x.float() @ weight + bias
        try:
            with uninitialized_memory_is_nan():
                actual = layer(x.to(device)).float().cpu()  # waits for the device, so it raises all errors
        except Exception as error:  # the caller reports it
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        max_error = float((actual - expected).abs().max() / expected.abs().max())
        if not max_error <= _TOLERANCE:
            return f"the maximum error of a product is {max_error:.3g} for {num_rows} rows"
    return None


def _stored_weight(layer: QuantizedLinear, kernels: TorchKernels) -> Tensor:
    """Return the transposed quantized weight, fp32 [inputs, outputs], computed by torch on the CPU."""
    on_cpu = replace(
        layer.weight,
        **{name: getattr(layer.weight, name).cpu() for name in ("packed", "scales", "codebook")},
    )
    # torch's kernels quantize the rows of x, which introduces no error if they contain only ones and zeros.
    return TorchKernels.quantized_linear(kernels, torch.eye(layer.shape.in_features), on_cpu, None)
