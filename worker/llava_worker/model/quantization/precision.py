"""In which number format the model computes and keeps its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch

from llava_worker.model.cpu.native import native_kernels
from llava_worker.model.kernels.fused import choose_kernels
from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.triton_linear import TritonLinearKernels
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.quantization.bitsandbytes import (
    Bnb4Linear,
    Bnb8Linear,
    has_bitsandbytes,
    require_bitsandbytes,
)
from llava_worker.model.quantization.w8a8 import (
    SCALED,
    ScaledFormat,
    ScaledLinear,
    fault_of_scaled,
    require_capability,
)
from llava_worker.model.quantization.weight_only import QuantizedLinear

__all__ = ["PRECISIONS", "Precision", "Role", "choose_precision", "precisions_on"]

logger = logging.getLogger(__name__)

Role = Literal["tower", "projector", "decoder", "head"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Bits of a weight by what the layer does. Four are kept to the decoder's layers, which are what is read for
# every token; what the others would save is small beside what they would lose (docs/precision.md).
_BITS: dict[str, dict[Role, int]] = {
    "int8": {"tower": 8, "projector": 8, "decoder": 8, "head": 8},
    "int4": {"tower": 8, "projector": 8, "decoder": 4, "head": 8},
}
# On a GPU, where 16 bits are fast: the decoder's layers only.
_GPU_BITS: dict[str, dict[Role, int]] = {
    "int8": {"decoder": 8},
    "int4": {"decoder": 4},
    "w4a16": {"decoder": 4},
    "w8a8": {"decoder": 8},
    "fp8": {"decoder": 8},
}
_CPU_NAMES = (*_DTYPES, *_BITS)
PRECISIONS = (*_DTYPES, *_GPU_BITS)
_ANY = (99, 0)  # of a card that is not here nothing is known


@dataclass(frozen=True, slots=True)
class Precision:
    """``dtype`` is that of activations, KV cache and every weight that is not in fewer bits.

    Who keeps the weights in fewer bits: ``is_bitsandbytes`` that library, ``scaled`` torch's products in that
    format, else our kernels: ``weight_kernels`` where they are not the ``kernels`` that do everything else.
    """

    name: str
    dtype: torch.dtype
    kernels: Kernels = field(default_factory=TorchKernels)
    bits: Mapping[Role, int] = field(default_factory=dict)  # without a role: kept in ``dtype``
    is_bitsandbytes: bool = False
    weight_kernels: Kernels | None = None
    scaled: ScaledFormat | None = None

    @property
    def is_recordable(self) -> bool:
        """Whether a step never waits for the device, as LLM.int8() does to find a row's outliers."""
        return not (self.is_bitsandbytes and 8 in self.bits.values())

    def require_dividable(self) -> None:
        """Raises ValueError where weights are in fewer bits: groups with one scale would be cut apart."""
        if self.bits:
            raise ValueError(
                f"precision {self.name} cannot be divided over several ranks: use one of "
                f"{', '.join(_DTYPES)}, or tensor_parallel 1"
            )

    def linear(self, shape: LinearShape, device: torch.device, role: Role) -> Linear:
        """A linear layer without values yet, in this precision's weight format."""
        if role in self.bits and self.is_bitsandbytes:
            if self.bits[role] == 8:
                return Bnb8Linear(shape, device=device)
            return Bnb4Linear(shape, dtype=self.dtype, device=device)
        if role in self.bits and self.scaled is not None:
            return ScaledLinear(shape, self.scaled, dtype=self.dtype, device=device)
        if role in self.bits:
            kernels = self.weight_kernels or self.kernels
            return QuantizedLinear(shape, bits=self.bits[role], kernels=kernels, device=device)
        return self.dense(shape, device)

    def dense(self, shape: LinearShape, device: torch.device) -> DenseLinear:
        """One that is kept in ``dtype`` whatever the format."""
        return DenseLinear(shape, kernels=self.kernels, dtype=self.dtype, device=device)


def choose_precision(name: str, device: torch.device, *, is_small: bool = False) -> Precision:
    """The precision of that name; "auto" is bf16 where the device has instructions for it, else fp32.

    A model that ``is_small`` is computed in fp32 on a CPU: exact, and no slower to speak of; in int8 and int4
    that goes for what is not a weight. Raises ValueError for a name that is none, or not on this device.
    """
    if name == "auto":
        name, why = _best_for(device, is_small)
        logger.info("precision auto: %s, because %s", name, why)
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}; it must be one of auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda" and name in _GPU_BITS:
        return _on_gpu(name, device)
    if name not in precisions_on(device):
        raise ValueError(
            f"precision {name} cannot be had on {device}: use one of auto, {', '.join(precisions_on(device))}"
        )
    if name in _BITS:
        dtype = torch.float32 if is_small or not _has_bf16() else torch.bfloat16
        return Precision(name, dtype, _kernels(device), _BITS[name])
    if name == "bf16":
        return Precision(name, torch.bfloat16, _kernels(device))
    return Precision(name, _DTYPES[name], choose_kernels(_DTYPES[name], device))


def precisions_on(device: torch.device) -> tuple[str, ...]:
    """Those that the device can serve with what is installed."""
    if device.type in ("cpu", "meta"):
        return _CPU_NAMES
    if device.type != "cuda":
        return tuple(_DTYPES)
    capability = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else _ANY
    lacking = set() if has_bitsandbytes() else set(_BITS)
    lacking |= {name for name, kind in SCALED.items() if capability < kind.capability}
    return tuple(name for name in PRECISIONS if name not in lacking)


def _on_gpu(name: str, device: torch.device) -> Precision:
    dtype = _DTYPES[_best_for(device, is_small=False)[0]]
    if name == "w4a16":
        packed = TritonLinearKernels()
        return Precision(name, dtype, choose_kernels(dtype, device), _GPU_BITS[name], weight_kernels=packed)
    if name in SCALED:
        _require_scaled(name, device)
        kernels = choose_kernels(dtype, device)
        return Precision(name, dtype, kernels, _GPU_BITS[name], scaled=SCALED[name])
    require_bitsandbytes(name)
    return Precision(name, dtype, choose_kernels(dtype, device), _GPU_BITS[name], is_bitsandbytes=True)


@cache  # asked for each number format whose memory is weighed
def _require_scaled(name: str, device: torch.device) -> None:
    """Raises ValueError where the card has no such products. Asked of a GPU elsewhere, nothing is known."""
    if not torch.cuda.is_available():
        return
    card = f"{device} ({torch.cuda.get_device_name(device)})"
    require_capability(name, torch.cuda.get_device_capability(device), card)
    fault = fault_of_scaled(SCALED[name], device)
    if fault is not None:
        raise ValueError(f"precision {name} fails its trial on {card}: {fault}; use int8, w4a16 or fp16")


def _kernels(device: torch.device) -> Kernels:
    native = native_kernels() if device.type == "cpu" else None
    return native or choose_kernels(torch.bfloat16, device)


def _best_for(device: torch.device, is_small: bool) -> tuple[str, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it"
        return "fp16", "the GPU has no bf16"
    if is_small:
        return "fp32", "the model is small"
    if device.type == "cpu" and _has_bf16():
        return "bf16", "the CPU has avx512_bf16"
    return "fp32", f"this {device.type} device has no bf16 instructions"


def _has_bf16() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
