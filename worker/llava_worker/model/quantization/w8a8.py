"""W8A8: weights and activations in 8 bits, INT8 or FP8, multiplied by a GPU's tensor cores.

Each row of W has one scale, computed when it is loaded, and each row of x one, computed in every step. The
matrix products are torch's, which computes them on a CPU too (in the tests).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from llava_worker.model.kernels.torch_impl import quantize_rows
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias

__all__ = ["Int8Format", "W8A8_FORMATS", "W8A8Format", "W8A8Linear", "require_capability", "self_test"]

Capability = tuple[int, int]

_FP8_MAX = 448.0  # the largest float8_e4m3fn
_MIN_INT8_ROWS = 32  # torch's INT8 product requires more than 16 rows of x on a GPU
# Before 2.12 torch cleared the workspace of Ada's FP8 product outside of the stream (pytorch issue 177651):
# in a CUDA graph, or concurrently with other streams, the product may hang.
_ADA, _ADA_MIN_TORCH = (8, 9), "2.12"
# Numbers of rows for the self-test. Above 256, torch pads the scales unless rows are a multiple of it
# (pytorch issue 133334).
_TEST_ROWS = (1, 40, 300)
_TOLERANCE = 0.02  # relative to a product's largest number; FP8's is computed in bf16


class W8A8Format(ABC):
    """An 8-bit format of weights and activations."""

    dtype: torch.dtype
    capability: Capability  # the minimum compute capability
    gpus: str  # the first generations that have it
    multiple: int  # sizes of W must be multiples of this

    @abstractmethod
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize fp32 [rows, n] to codes and each row's scale, fp32 [rows, 1].

        The products of a row with an infinity or a NaN are not finite either.
        """

    @abstractmethod
    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        """Multiply codes x [rows, inputs] by codes w [outputs, inputs] as `reference` does."""

    @staticmethod
    def reference(x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        """Return x w^T [rows, outputs] in fp32."""
        return ((x.double() @ w.double().t()) * x_scales * w_scales.t()).float()


class Int8Format(W8A8Format):
    dtype = torch.int8
    capability = (8, 0)
    gpus = "Ampere"
    multiple = 8

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales = quantize_rows(x)
        return codes.to(torch.int8), scales

    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        num = len(x)
        padded = F.pad(x, (0, 0, 0, max(0, _MIN_INT8_ROWS - num)))
        return torch._int_mm(padded, w.t())[:num] * x_scales * w_scales.t()


class Fp8Format(W8A8Format):
    dtype = torch.float8_e4m3fn
    capability = (8, 9)
    gpus = "Ada and Hopper"
    multiple = 16

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        top = x.abs().amax(1, keepdim=True)
        factor = torch.where(top > 0, _FP8_MAX / top, 0.0)
        return (x * factor).to(self.dtype), top / _FP8_MAX  # one ulp above the maximum is rounded to it

    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        y: Tensor = torch._scaled_mm(x, w.t(), x_scales, w_scales.t(), out_dtype=torch.bfloat16)
        return y


W8A8_FORMATS: dict[str, W8A8Format] = {"w8a8": Int8Format(), "fp8": Fp8Format()}


class W8A8Linear(Linear):
    def __init__(
        self, shape: LinearShape, fmt: W8A8Format, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """``dtype`` is the bias's. Raises ValueError for a layer whose sizes the products do not support."""
        super().__init__(shape)
        if shape.in_features % fmt.multiple or shape.out_features % fmt.multiple:
            raise ValueError(
                f"a layer has {shape.in_features} inputs and {shape.out_features} outputs, and products in "
                f"8 bits take multiples of {fmt.multiple}: use int8, bf16 or fp16"
            )
        codes = torch.zeros(shape.out_features, shape.in_features, dtype=fmt.dtype, device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        scales = torch.zeros(shape.out_features, 1, device=device)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = empty_bias(shape, dtype, device)
        self._format = fmt

    def __call__(self, x: Tensor) -> Tensor:
        codes, scales = self._format.quantize(x.reshape(-1, x.shape[-1]).float())
        y = self._format.matmul(codes, scales, self.codes, self.scales)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.shape.out_features)

    def load_rows(self, start: int, rows: Tensor) -> None:
        codes, scales = self._format.quantize(rows.to(self.codes.device, torch.float32))
        self.codes[start : start + len(rows)] = codes
        self.scales[start : start + len(rows)] = scales


def require_capability(
    precision: str, capability: Capability, gpu: str, *, torch_version: str = torch.__version__
) -> None:
    """Raise ValueError if the GPU, or torch on it, does not support the format, with alternatives."""
    required = W8A8_FORMATS[precision].capability
    if capability >= required:
        if precision == "fp8" and capability == _ADA and TorchVersion(torch_version) < _ADA_MIN_TORCH:
            raise ValueError(
                f"precision fp8 on {gpu} needs torch {_ADA_MIN_TORCH} or later, and this is "
                f"{torch_version}, whose products may hang there: install a later one, or use w8a8 or fp16"
            )
        return
    others = [name for name, fmt in W8A8_FORMATS.items() if capability >= fmt.capability]
    raise ValueError(
        f"precision {precision} needs a GPU of compute capability {_dotted(required)} or later "
        f"({W8A8_FORMATS[precision].gpus}), and {gpu} has {_dotted(capability)}: use "
        f"{', '.join([*others, 'int8', 'w4a16'])} or fp16"
    )


@torch.inference_mode()
def self_test(fmt: W8A8Format, device: torch.device) -> str | None:
    """Compare products on this device with the reference. Return what is wrong, or None."""
    noise = torch.Generator().manual_seed(0)
    w, w_scales = fmt.quantize(torch.randn(96, 160, generator=noise).to(device))
    for num in _TEST_ROWS:
        x, x_scales = fmt.quantize(torch.randn(num, 160, generator=noise).to(device))
        expected = fmt.reference(x, x_scales, w, w_scales)
        try:
            actual = fmt.matmul(x, x_scales, w, w_scales)
        except Exception as error:  # reported to the caller: whatever a kernel raises, other formats work
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        max_error = float((actual.float() - expected).abs().max() / expected.abs().max())
        if not max_error <= _TOLERANCE:
            return f"a product is {max_error:.3g} off"
    return None


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
