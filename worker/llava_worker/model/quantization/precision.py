"""Precisions: the compute dtype of a model and the format of its weights."""

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
from llava_worker.model.kernels.w4a16 import W4A16Kernels
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.quantization.bitsandbytes import (
    BnbInt8Linear,
    BnbNF4Linear,
    has_bitsandbytes,
    require_bitsandbytes,
)
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from llava_worker.model.quantization.w8a8 import (
    W8A8_FORMATS,
    W8A8Format,
    W8A8Linear,
    require_capability,
    self_test,
)

__all__ = ["PRECISIONS", "Precision", "Role", "choose_precision", "precisions_on"]

logger = logging.getLogger(__name__)

Role = Literal["vision_tower", "projector", "decoder", "lm_head"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Bits per weight by the layer's role, on a CPU. Only the decoder's layers, which are read for every token,
# have four: what the others would save is small beside the accuracy they would lose (docs/precision.md).
_CPU_BITS: dict[str, dict[Role, int]] = {
    "int8": {"vision_tower": 8, "projector": 8, "decoder": 8, "lm_head": 8},
    "int4": {"vision_tower": 8, "projector": 8, "decoder": 4, "lm_head": 8},
}
# On a GPU, where 16 bits are fast: the decoder's layers only.
_GPU_BITS: dict[str, dict[Role, int]] = {
    "int8": {"decoder": 8},
    "int4": {"decoder": 4},
    "w4a16": {"decoder": 4},
    "w8a8": {"decoder": 8},
    "fp8": {"decoder": 8},
}
_CPU_PRECISIONS = (*_DTYPES, *_CPU_BITS)
PRECISIONS = (*_DTYPES, *_GPU_BITS)
_UNKNOWN_CAPABILITY = (99, 0)  # of a GPU that is not in this machine: assume everything


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model is computed and stored.

    Layers whose role is in ``bits`` have quantized weights: bitsandbytes' if ``is_bitsandbytes``, else in the
    format ``w8a8`` if given, else our own for ``weight_kernels`` (by default ``kernels``).
    """

    name: str
    dtype: torch.dtype  # of activations, the KV cache and weights that are not quantized
    kernels: Kernels = field(default_factory=TorchKernels)
    bits: Mapping[Role, int] = field(default_factory=dict)
    is_bitsandbytes: bool = False
    weight_kernels: Kernels | None = None
    w8a8: W8A8Format | None = None

    @property
    def is_capturable(self) -> bool:
        """Whether a step can be a CUDA graph. LLM.int8() waits for the device to find a row's outliers."""
        return not (self.is_bitsandbytes and 8 in self.bits.values())

    def require_shardable(self) -> None:
        """Raise ValueError if weights are quantized: a shard would cut groups that share a scale."""
        if self.bits:
            raise ValueError(
                f"precision {self.name} cannot be divided over several ranks: use one of "
                f"{', '.join(_DTYPES)}, or tensor_parallel 1"
            )

    def linear(self, shape: LinearShape, device: torch.device, role: Role) -> Linear:
        """Create a linear layer, without values yet, in this precision's weight format."""
        bits = self.bits.get(role)
        if bits is None:
            return self.dense_linear(shape, device)
        if self.is_bitsandbytes and bits == 8:
            return BnbInt8Linear(shape, device=device)
        if self.is_bitsandbytes:
            return BnbNF4Linear(shape, dtype=self.dtype, device=device)
        if self.w8a8 is not None:
            return W8A8Linear(shape, self.w8a8, dtype=self.dtype, device=device)
        kernels = self.weight_kernels or self.kernels
        return QuantizedLinear(shape, bits=bits, kernels=kernels, device=device)

    def dense_linear(self, shape: LinearShape, device: torch.device) -> DenseLinear:
        """Create a linear layer whose weight is stored in ``dtype``."""
        return DenseLinear(shape, kernels=self.kernels, dtype=self.dtype, device=device)


def choose_precision(name: str, device: torch.device, *, is_small: bool = False) -> Precision:
    """Return the precision of that name; "auto" is bf16 if the device has instructions for it, else fp32.

    On a CPU a model that ``is_small`` is computed in fp32, which is exact and hardly slower; in int8 and
    int4, what is not a weight. Raises ValueError for an unknown name or one that the device does not support.
    """
    if name == "auto":
        name, reason = _auto(device, is_small)
        logger.info("precision auto: %s, because %s", name, reason)
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}; it must be one of auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda" and name in _GPU_BITS:
        return _quantized_on_gpu(name, device)
    if name not in precisions_on(device):
        raise ValueError(
            f"precision {name} cannot be had on {device}: use one of auto, {', '.join(precisions_on(device))}"
        )
    if name in _CPU_BITS:
        dtype = torch.float32 if is_small or not _has_bf16() else torch.bfloat16
        return Precision(name, dtype, _native_or_fused(device), _CPU_BITS[name])
    if name == "bf16":
        return Precision(name, torch.bfloat16, _native_or_fused(device))
    return Precision(name, _DTYPES[name], choose_kernels(_DTYPES[name], device))


def precisions_on(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that the device supports with what is installed."""
    if device.type in ("cpu", "meta"):
        return _CPU_PRECISIONS
    if device.type != "cuda":
        return tuple(_DTYPES)
    capability = (
        torch.cuda.get_device_capability(device) if torch.cuda.is_available() else _UNKNOWN_CAPABILITY
    )
    unsupported = set() if has_bitsandbytes() else {"int8", "int4"}
    unsupported |= {name for name, fmt in W8A8_FORMATS.items() if capability < fmt.capability}
    return tuple(name for name in PRECISIONS if name not in unsupported)


def _quantized_on_gpu(name: str, device: torch.device) -> Precision:
    dtype = _DTYPES[_auto(device, is_small=False)[0]]
    bits = _GPU_BITS[name]
    if name == "w4a16":
        weight_kernels = W4A16Kernels()
        return Precision(name, dtype, choose_kernels(dtype, device), bits, weight_kernels=weight_kernels)
    if name in W8A8_FORMATS:
        _require_w8a8(name, device)
        return Precision(name, dtype, choose_kernels(dtype, device), bits, w8a8=W8A8_FORMATS[name])
    require_bitsandbytes(name)
    return Precision(name, dtype, choose_kernels(dtype, device), bits, is_bitsandbytes=True)


@cache  # called once per precision whose memory is estimated
def _require_w8a8(name: str, device: torch.device) -> None:
    """Raise ValueError if the GPU does not support the format; a GPU of another machine is not checked."""
    if not torch.cuda.is_available():
        return
    gpu = f"{device} ({torch.cuda.get_device_name(device)})"
    require_capability(name, torch.cuda.get_device_capability(device), gpu)
    fault = self_test(W8A8_FORMATS[name], device)
    if fault is not None:
        raise ValueError(f"precision {name} fails its trial on {gpu}: {fault}; use int8, w4a16 or fp16")


def _native_or_fused(device: torch.device) -> Kernels:
    native = native_kernels() if device.type == "cpu" else None
    return native or choose_kernels(torch.bfloat16, device)


def _auto(device: torch.device, is_small: bool) -> tuple[str, str]:
    """Return the name of the precision for "auto", and the reason."""
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
