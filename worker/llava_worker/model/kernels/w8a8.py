"""The formats of W8A8: 8-bit weights and activations, multiplied on the tensor cores of a GPU.

Each row of W and of x has one scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["W8A8_FORMATS", "Capability", "Int8Format", "QuantizedRows", "W8A8Format", "quantize_rows"]

Capability = tuple[int, int]

_FP8_MAX = 448.0  # largest value of float8_e4m3fn
_MIN_TOP = 2.0**-118  # rows with smaller values are quantized to zeros, because 448 / top would be infinite
_MIN_INT8_ROWS = 32  # on a GPU, torch's INT8 products require more than 16 rows of x


class QuantizedRows(NamedTuple):
    """Rows of activations or weights: codes [rows, n] times scales, fp32 [rows, 1]."""

    codes: Tensor
    scales: Tensor


class W8A8Format(ABC):
    """An 8-bit format for weights and activations."""

    dtype: torch.dtype
    capability: Capability  # minimum compute capability
    gpus: str  # GPU generations that introduced this capability
    multiple: int  # both dimensions of W must be multiples of this number

    @abstractmethod
    def quantize(self, x: Tensor) -> QuantizedRows:
        """Quantize x, fp32 [rows, n].

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

    def quantize(self, x: Tensor) -> QuantizedRows:
        codes, scales = quantize_rows(x)
        return QuantizedRows(codes.to(torch.int8), scales)

    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        num = len(x)
        padded = F.pad(x, (0, 0, 0, max(0, _MIN_INT8_ROWS - num)))
        return torch._int_mm(padded, w.t())[:num] * x_scales * w_scales.t()


class Fp8Format(W8A8Format):
    dtype = torch.float8_e4m3fn
    capability = (8, 9)
    gpus = "Ada and Hopper"
    multiple = 16

    def quantize(self, x: Tensor) -> QuantizedRows:
        top = x.abs().amax(1, keepdim=True)
        factor = torch.where(top >= _MIN_TOP, _FP8_MAX / top, 0.0)
        # A value 1 ULP above the maximum is rounded down.
        return QuantizedRows((x * factor).to(self.dtype), top / _FP8_MAX)

    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        y: Tensor = torch._scaled_mm(x, w.t(), x_scales, w_scales.t(), out_dtype=torch.bfloat16)
        return y


W8A8_FORMATS: dict[str, W8A8Format] = {"w8a8": Int8Format(), "fp8": Fp8Format()}


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize x, fp32 [rows, n]. Return fp32 codes from -127 to 127, and fp32 scales [rows, 1].

    If a row contains an infinity or a NaN, its scale is not finite, so its products are not finite either.
    """
    top = x.abs().amax(1, keepdim=True)
    # The dividend is a tensor, because torch would multiply a Python number by the reciprocal of ``top``,
    # which rounds twice.
    factor = torch.where(top >= _MIN_TOP, torch.tensor(127.0, device=x.device) / top, 0.0)
    return (x * factor).nan_to_num().round(), top / 127.0
