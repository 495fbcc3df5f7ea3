"""Precisions: combinations of a compute dtype and a weight format."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch

from llava_worker.model.cpu.native import NativeKernels, cpu_kernels
from llava_worker.model.kernels.fused import choose_kernels
from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.w4a16 import W4A16Kernels
from llava_worker.model.kernels.w8a8 import W8A8_FORMATS, W8A8Format
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.layers.packed_linear import PackedLinear
from llava_worker.model.quantization import quantized_linear, w8a8
from llava_worker.model.quantization.bitsandbytes import (
    BnbInt8Linear,
    BnbNF4Linear,
    has_bitsandbytes,
    require_bitsandbytes,
)
from llava_worker.model.quantization.capability import (
    require_capability,
    required_gpu,
    unsupported_precisions,
)
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from llava_worker.model.quantization.w8a8 import W8A8Linear
from llava_worker.selection_log import log_precision

__all__ = ["PRECISIONS", "Precision", "Role", "choose_dtype", "choose_precision", "precisions_on"]

logger = logging.getLogger(__name__)

# The down projections of a decoder are more sensitive than its other layers, so they have their own role.
Role = Literal["vision_tower", "projector", "decoder", "down_proj", "lm_head"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Bits per weight on a CPU, keyed by the role of the layer. Only decoder layers, which are read for every
# token, use 4 or 5 bits. In other layers, the loss of accuracy would outweigh the savings
# (docs/performance/precision.md).
_CPU_BITS: dict[str, dict[Role, int]] = {
    "int8": {"vision_tower": 8, "projector": 8, "decoder": 8, "down_proj": 8, "lm_head": 8},
    "int4": {"vision_tower": 8, "projector": 8, "decoder": 4, "down_proj": 5, "lm_head": 8},
}
# On a CPU, layers with fewer inputs have 5 bits instead of 4. Small models lose more accuracy when they are
# quantized, and are fast anyway.
_MIN_4_BIT_INPUTS = 2048
# On a GPU, only decoder layers are quantized, because 16-bit products are fast.
_GPU_BITS: dict[str, dict[Role, int]] = {
    "int8": {"decoder": 8, "down_proj": 8},
    "int4": {"decoder": 4, "down_proj": 4},
    "w4a16": {"decoder": 4, "down_proj": 4},
    "w8a8": {"decoder": 8, "down_proj": 8},
    "fp8": {"decoder": 8, "down_proj": 8},
}
_CPU_PRECISIONS = (*_DTYPES, *_CPU_BITS)
PRECISIONS = (*_DTYPES, *_GPU_BITS)
_UNKNOWN_CAPABILITY = (99, 0)  # a GPU that is not in this machine is assumed to support all precisions


@dataclass(frozen=True, slots=True)
class Precision:
    """The compute dtype, kernels and weight formats of a model.

    Layers whose role is in ``bits`` have quantized weights. Their format is a bitsandbytes format if
    ``is_bitsandbytes`` is true. Otherwise it is ``w8a8`` if that is set, or else the packed format of
    ``weight_kernels``, which default to ``kernels``. Layers with fewer than ``min_4_bit_inputs`` inputs have
    5 bits instead of 4.
    """

    name: str
    dtype: torch.dtype  # dtype of activations, KV cache and unquantized weights
    kernels: Kernels = field(default_factory=TorchKernels)
    bits: Mapping[Role, int] = field(default_factory=dict)
    is_bitsandbytes: bool = False
    weight_kernels: Kernels | None = None
    w8a8: W8A8Format | None = None
    min_4_bit_inputs: int = 0

    @property
    def is_capturable(self) -> bool:
        """Whether CUDA graphs are supported.

        LLM.int8() does not support them, because it synchronizes with the device to find outliers.
        """
        return not (self.is_bitsandbytes and 8 in self.bits.values())

    def require_shardable(self) -> None:
        """Raise ValueError if weights are quantized. Sharding them would split quantization groups."""
        if self.bits:
            supported = ", ".join(_DTYPES)
            raise ValueError(
                f"Precision {self.name} does not support tensor parallelism. Use one of {supported}, or set "
                "tensor_parallel to 1."
            )

    def weight_bits(self, shape: LinearShape, role: Role) -> int | None:
        """Return the bits per weight of a layer, or None if it is not quantized."""
        bits = self.bits.get(role)
        return 5 if bits == 4 and shape.in_features < self.min_4_bit_inputs else bits

    def linear(self, shape: LinearShape, device: torch.device, role: Role) -> Linear:
        """Create an uninitialized linear layer in this precision's weight format for ``role``."""
        bits = self.weight_bits(shape, role)
        if bits is None:
            return self._unquantized_linear(shape, device)
        if self.is_bitsandbytes and bits == 8:
            return BnbInt8Linear(shape, device=device)
        if self.is_bitsandbytes:
            return BnbNF4Linear(shape, dtype=self.dtype, device=device)
        if self.w8a8 is not None:
            return W8A8Linear(shape, self.w8a8, kernels=self.kernels, dtype=self.dtype, device=device)
        kernels = self.weight_kernels or self.kernels
        return QuantizedLinear(shape, bits=bits, kernels=kernels, device=device)

    def _unquantized_linear(self, shape: LinearShape, device: torch.device) -> Linear:
        kernels = self.kernels
        if isinstance(kernels, NativeKernels) and kernels.packs_bf16 and self.dtype == torch.bfloat16:
            return PackedLinear(shape, kernels=kernels, device=device)
        return self.dense_linear(shape, device)

    def dense_linear(self, shape: LinearShape, device: torch.device) -> DenseLinear:
        """Create an uninitialized layer that stores its weight in ``dtype``, in the checkpoint's layout."""
        return DenseLinear(shape, kernels=self.kernels, dtype=self.dtype, device=device)


def choose_precision(name: str, device: torch.device, *, is_small: bool = False) -> Precision:
    """Return the precision with this name. Raises ValueError if the device does not support it.

    The name "auto" selects bf16 if the device has bf16 instructions. Otherwise it selects fp16 on a GPU and
    fp32 on any other device.

    ``is_small`` applies to CPUs: "auto" selects fp32, and int8 and int4 compute in fp32, because for a small
    model, fp32 is hardly slower.
    """
    name = _resolve(name, PRECISIONS, device, is_small=is_small)
    if device.type == "cuda" and name in _GPU_BITS:
        return _quantized_on_gpu(name, device)
    if name not in precisions_on(device):
        available, requirement = ", ".join(precisions_on(device)), required_gpu(name)
        fault = f"requires {requirement}; the device is" if requirement else "is not available on"
        raise ValueError(f"Precision {name} {fault} {device}. Use one of auto, {available}.")
    if name in _CPU_BITS:
        dtype = torch.float32 if is_small or not _has_bf16() else torch.bfloat16
        kernels = _native_or_fused(device)
        return Precision(name, dtype, kernels, _CPU_BITS[name], min_4_bit_inputs=_MIN_4_BIT_INPUTS)
    if name == "bf16":
        return Precision(name, torch.bfloat16, _native_or_fused(device))
    return Precision(name, _DTYPES[name], choose_kernels(_DTYPES[name], device))


def choose_dtype(name: str, device: torch.device, *, is_small: bool = False) -> tuple[str, torch.dtype]:
    """Return the name and the dtype of an unquantized precision. "auto" is resolved as by `choose_precision`.

    Raises ValueError if the name is unknown.
    """
    name = _resolve(name, _DTYPES, device, is_small=is_small)
    return name, _DTYPES[name]


def _resolve(name: str, known: Collection[str], device: torch.device, *, is_small: bool) -> str:
    """Return the precision that "auto" selects, or the given one. Raises ValueError if it is unknown."""
    if name == "auto":
        name, reason = _auto(device, is_small)
        log_precision(name, reason)
    if name not in known:
        supported = ", ".join(known)
        raise ValueError(f"Precision {name!r} is not supported. Use one of auto, {supported}.")
    return name


def precisions_on(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that the device and the installed packages support."""
    if device.type in ("cpu", "meta"):
        return _CPU_PRECISIONS
    if device.type != "cuda":
        return tuple(_DTYPES)
    capability = (
        torch.cuda.get_device_capability(device) if torch.cuda.is_available() else _UNKNOWN_CAPABILITY
    )
    unsupported = set() if has_bitsandbytes() else {"int8", "int4"}
    unsupported |= unsupported_precisions(capability)
    return tuple(name for name in PRECISIONS if name not in unsupported)


def _quantized_on_gpu(name: str, device: torch.device) -> Precision:
    dtype = _DTYPES[_auto(device, is_small=False)[0]]
    bits = _GPU_BITS[name]
    if name == "w4a16":
        weight_kernels = _w4a16_kernels(dtype, device)
        return Precision(name, dtype, choose_kernels(dtype, device), bits, weight_kernels=weight_kernels)
    if name in W8A8_FORMATS:
        return Precision(name, dtype, _w8a8_kernels(name, dtype, device), bits, w8a8=W8A8_FORMATS[name])
    require_bitsandbytes(name)
    return Precision(name, dtype, choose_kernels(dtype, device), bits, is_bitsandbytes=True)


def _require_capability(name: str, device: torch.device) -> None:
    """Raise ValueError if the GPU does not support the precision. Without a GPU, this is a no-op."""
    if torch.cuda.is_available():
        require_capability(name, torch.cuda.get_device_capability(device), _gpu_name(device))


def _w4a16_kernels(dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return the kernels for W4A16. Raises ValueError if the GPU does not support them, or if they fail."""
    _require_capability("w4a16", device)
    kernels = W4A16Kernels()
    if torch.cuda.is_available() and (fault := _w4a16_fault(dtype, device)) is not None:
        gpu = _gpu_name(device)
        raise ValueError(f"Precision w4a16 failed its self-test on {gpu}: {fault}. Use int4, int8 or fp16.")
    return kernels


@cache  # called again whenever memory usage is estimated
def _w4a16_fault(dtype: torch.dtype, device: torch.device) -> str | None:
    return quantized_linear.self_test(W4A16Kernels(), dtype, device)


@cache  # called again whenever memory usage is estimated
def _w8a8_kernels(name: str, dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return kernels that pass a self-test of the format. Without a GPU, the kernels are not tested.

    Raises ValueError if the GPU does not support the format, or if torch's kernels fail the self-test.
    """
    _require_capability(name, device)
    kernels = choose_kernels(dtype, device)
    if not torch.cuda.is_available():
        return kernels
    fault = w8a8.self_test(W8A8_FORMATS[name], kernels, dtype, device)
    if fault is not None and type(kernels) is not TorchKernels:
        logger.warning(
            "precision %s: torch kernels, because Triton kernels failed a self-test: %s", name, fault
        )
        kernels = TorchKernels(fallback_reason=f"Triton kernels failed a self-test: {fault}")
        fault = w8a8.self_test(W8A8_FORMATS[name], kernels, dtype, device)
    if fault is not None:
        gpu = _gpu_name(device)
        raise ValueError(f"Precision {name} failed its self-test on {gpu}: {fault}. Use int8, w4a16 or fp16.")
    return kernels


def _gpu_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _native_or_fused(device: torch.device) -> Kernels:
    return cpu_kernels() if device.type == "cpu" else choose_kernels(torch.bfloat16, device)


def _auto(device: torch.device, is_small: bool) -> tuple[str, str]:
    """Return the name of the precision that "auto" selects, and the reason for it."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU supports it"
        return "fp16", "the GPU does not support bf16"
    if is_small:
        return "fp32", "the model is small"
    if device.type == "cpu" and _has_bf16():
        return "bf16", "the CPU supports avx512_bf16"
    return "fp32", f"this {device.type} device has no bf16 instructions"


def _has_bf16() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
