"""W8A8: 8-bit weights and activations (INT8 or FP8), multiplied on the tensor cores of a GPU.

Rows of W are quantized while they are loaded, and rows of x are quantized in each step. Each row has one
scale. torch computes the matrix products. Tests also use its CPU implementation.
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

_FP8_MAX = 448.0  # largest value of float8_e4m3fn
_MIN_INT8_ROWS = 32  # on a GPU, torch's INT8 products require more than 16 rows of x
# On Ada GPUs, torch versions before 2.12 clear the workspace for FP8 products outside of the current stream
# (pytorch issue 177651). In a CUDA graph, or while other streams are active, a product may therefore hang.
_ADA, _ADA_MIN_TORCH = (8, 9), "2.12"
# Numbers of rows in the self-test. For more than 256 rows, torch pads the scales unless the number is a
# multiple of 256 (pytorch issue 133334).
_TEST_ROWS = (1, 40, 300)
_TOLERANCE = 0.02  # relative to the largest element of the product; FP8 products are rounded to bf16


class W8A8Format(ABC):
    """An 8-bit format for weights and activations."""

    dtype: torch.dtype
    capability: Capability  # minimum compute capability
    gpus: str  # GPU generations that introduced this capability
    multiple: int  # both dimensions of W must be multiples of this number

    @abstractmethod
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize x, fp32 [rows, n]. Return the codes and the fp32 scales [rows, 1].

        If a row contains an infinity or a NaN, its products are not finite.
        """

    @abstractmethod
    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        """Return the scaled product x w^T [rows, outputs] for codes x [rows, inputs], w [outputs, inputs]."""

    @staticmethod
    def reference(x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        """Compute the result of `matmul` in fp64, and round it to fp32."""
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
        return (x * factor).to(self.dtype), top / _FP8_MAX  # a value 1 ULP above the maximum is rounded down

    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        y: Tensor = torch._scaled_mm(x, w.t(), x_scales, w_scales.t(), out_dtype=torch.bfloat16)
        return y


W8A8_FORMATS: dict[str, W8A8Format] = {"w8a8": Int8Format(), "fp8": Fp8Format()}


class W8A8Linear(Linear):
    def __init__(
        self, shape: LinearShape, fmt: W8A8Format, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Create a layer whose bias is in ``dtype``. Raises ValueError if the shape is not supported."""
        super().__init__(shape)
        if shape.in_features % fmt.multiple or shape.out_features % fmt.multiple:
            raise ValueError(
                f"A layer has {shape.in_features} inputs and {shape.out_features} outputs; 8-bit "
                f"matmuls require both to be multiples of {fmt.multiple}. Use int8, bf16 or fp16."
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
    """Raise ValueError if the precision requires a different GPU or a later version of torch."""
    required = W8A8_FORMATS[precision].capability
    if capability >= required:
        if precision == "fp8" and capability == _ADA and TorchVersion(torch_version) < _ADA_MIN_TORCH:
            raise ValueError(
                f"Precision fp8 on {gpu} requires torch {_ADA_MIN_TORCH} or later; FP8 products in version "
                f"{torch_version} may hang. Upgrade torch, or use w8a8 or fp16."
            )
        return
    others = [name for name, fmt in W8A8_FORMATS.items() if capability >= fmt.capability]
    alternatives = ", ".join([*others, "int8", "w4a16"])
    generations, minimum, actual = W8A8_FORMATS[precision].gpus, _dotted(required), _dotted(capability)
    raise ValueError(
        f"Precision {precision} requires a GPU with compute capability {minimum} or higher ({generations}); "
        f"{gpu} has {actual}. Use {alternatives} or fp16."
    )


@torch.inference_mode()
def self_test(fmt: W8A8Format, device: torch.device) -> str | None:
    """Compare products on this device with the reference.

    Returns a description of the error, or None if there is none.
    """
    noise = torch.Generator().manual_seed(0)
    w, w_scales = fmt.quantize(torch.randn(96, 160, generator=noise).to(device))
    for num in _TEST_ROWS:
        x, x_scales = fmt.quantize(torch.randn(num, 160, generator=noise).to(device))
        expected = fmt.reference(x, x_scales, w, w_scales)
        try:
            actual = fmt.matmul(x, x_scales, w, w_scales)
            # Reading the result waits for the device, so errors in kernels are raised here.
            max_error = float((actual.float() - expected).abs().max() / expected.abs().max())
        except Exception as error:  # the caller reports it
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if not max_error <= _TOLERANCE:
            return f"the maximum error of a product is {max_error:.3g}"
    return None


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
