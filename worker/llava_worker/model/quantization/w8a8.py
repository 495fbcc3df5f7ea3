"""Weights and inputs in 8 bits, multiplied as such by a GPU's tensor cores: whole numbers, or floats (FP8).

Each row of W has a scale, found as it is loaded, and each row of x one, found in every step. The products are
torch's, which computes them on a CPU too: that is how they are tested.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from llava_worker.model.kernels.torch_impl import round_rows
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias

__all__ = ["SCALED", "ScaledFormat", "ScaledLinear", "fault_of_scaled", "require_capability"]

Capability = tuple[int, int]

_MOST_FP8 = 448.0  # of float8_e4m3fn
_LEAST_INT_ROWS = 32  # torch's product of whole numbers wants more than 16 rows of x on a GPU
# Before 2.12 torch cleared the workspace of Ada's product in FP8 outside of the stream (pytorch issue
# 177651): recorded, or beside other streams, the product may wait for ever.
_ADA, _TORCH_FOR_ADA = (8, 9), "2.12"
# Rows of a trial. Of more than 256 and no multiple of it torch pads the scales (pytorch issue 133334).
_TRIAL_ROWS = (1, 40, 300)
_TOLERANCE = 0.02  # of a product's largest number; FP8's comes in bf16


class ScaledFormat(ABC):
    """How a number is kept in 8 bits. ``capability`` is what a card must have, ``cards`` are the first."""

    dtype: torch.dtype
    capability: Capability
    cards: str
    multiple: int  # sizes of W must be its multiples

    @abstractmethod
    def round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 [rows, n] -> codes and each row's scale, fp32 [rows, 1].

        A row with an infinity or a NaN becomes one whose products are none either.
        """

    @abstractmethod
    def multiply(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        """Codes x [rows, inputs] times codes w [outputs, inputs], as `reference`."""

    @staticmethod
    def reference(x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:  # [rows, outputs]
        return ((x.double() @ w.double().t()) * x_scales * w_scales.t()).float()


class _Int8(ScaledFormat):
    dtype = torch.int8
    capability = (8, 0)
    cards = "Ampere"
    multiple = 8

    def round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        whole, scale = round_rows(x)
        return whole.to(torch.int8), scale

    def multiply(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        num = len(x)
        padded = F.pad(x, (0, 0, 0, max(0, _LEAST_INT_ROWS - num)))
        return torch._int_mm(padded, w.t())[:num] * x_scales * w_scales.t()


class _Fp8(ScaledFormat):
    dtype = torch.float8_e4m3fn
    capability = (8, 9)
    cards = "Ada and Hopper"
    multiple = 16

    def round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        most = x.abs().amax(1, keepdim=True)
        factor = torch.where(most > 0, _MOST_FP8 / most, 0.0)
        return (x * factor).to(self.dtype), most / _MOST_FP8  # an ulp beyond the largest is rounded to it

    def multiply(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        y: Tensor = torch._scaled_mm(x, w.t(), x_scales, w_scales.t(), out_dtype=torch.bfloat16)
        return y


SCALED: dict[str, ScaledFormat] = {"w8a8": _Int8(), "fp8": _Fp8()}


class ScaledLinear(Linear):
    def __init__(
        self, shape: LinearShape, kind: ScaledFormat, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """``dtype`` is the bias's. Raises ValueError for a layer whose sizes the products do not take."""
        super().__init__(shape)
        if shape.in_features % kind.multiple or shape.out_features % kind.multiple:
            raise ValueError(
                f"a layer has {shape.in_features} inputs and {shape.out_features} outputs, and products in "
                f"8 bits take multiples of {kind.multiple}: use int8, bf16 or fp16"
            )
        codes = torch.zeros(shape.out_features, shape.in_features, dtype=kind.dtype, device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        scales = torch.zeros(shape.out_features, 1, device=device)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = empty_bias(shape, dtype, device)
        self._kind = kind

    def __call__(self, x: Tensor) -> Tensor:
        codes, scales = self._kind.round(x.reshape(-1, x.shape[-1]).float())
        y = self._kind.multiply(codes, scales, self.codes, self.scales)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.shape.out_features)

    def load_rows(self, start: int, rows: Tensor) -> None:
        codes, scales = self._kind.round(rows.to(self.codes.device, torch.float32))
        self.codes[start : start + len(rows)] = codes
        self.scales[start : start + len(rows)] = scales


def require_capability(
    precision: str, capability: Capability, card: str, *, torch_version: str = torch.__version__
) -> None:
    """Raises ValueError that says what the card lacks, or torch for it, and what serves instead."""
    wanted = SCALED[precision].capability
    if capability >= wanted:
        if precision == "fp8" and capability == _ADA and TorchVersion(torch_version) < _TORCH_FOR_ADA:
            raise ValueError(
                f"precision fp8 on {card} needs torch {_TORCH_FOR_ADA} or later, and this is "
                f"{torch_version}, whose products may hang there: install a later one, or use w8a8 or fp16"
            )
        return
    others = [name for name, kind in SCALED.items() if capability >= kind.capability]
    raise ValueError(
        f"precision {precision} needs a GPU of compute capability {_dotted(wanted)} or later "
        f"({SCALED[precision].cards}), and {card} has {_dotted(capability)}: use "
        f"{', '.join([*others, 'int8', 'w4a16'])} or fp16"
    )


@torch.inference_mode()
def fault_of_scaled(kind: ScaledFormat, device: torch.device) -> str | None:
    """What is wrong with the products on this device, asked with a few rows and with many."""
    noise = torch.Generator().manual_seed(0)
    w, w_scales = kind.round(torch.randn(96, 160, generator=noise).to(device))
    for num in _TRIAL_ROWS:
        x, x_scales = kind.round(torch.randn(num, 160, generator=noise).to(device))
        wanted = kind.reference(x, x_scales, w, w_scales)
        try:
            got = kind.multiply(x, x_scales, w, w_scales)
        except Exception as error:  # told to whoever asked for the format: others serve
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        most = float((got.float() - wanted).abs().max() / wanted.abs().max())
        if not most <= _TOLERANCE:
            return f"a product is {most:.3g} off"
    return None


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
