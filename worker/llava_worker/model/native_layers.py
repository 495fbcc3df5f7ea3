"""All layers of a decoder, computed by one call of the C++ kernels.

A call per operation would take a few milliseconds more in each step.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.attention.base import PromptRows, StepRows
from llava_worker.model.cpu.native import MAX_BF16_ROWS, NativeKernels
from llava_worker.model.layers.linear import DenseLinear, Linear
from llava_worker.model.layers.packed_linear import PackedLinear
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.quantized_linear import QuantizedLinear

__all__ = ["LayerWeights", "NativeLayers"]

_MAX_AMX_ROWS = 16  # products with more rows use AMX and are not part of the call
_BF16_BITS = 16
_LANES = 16  # head_dim must be a multiple of this
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of a decoder layer. ``window`` is the sliding window; 0 means unlimited."""

    input_norm: Tensor
    post_attention_norm: Tensor
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    window: int


class _Linear(ctypes.Structure):
    """Corresponds to LinearLayer in decoder_layers.cpp."""

    _fields_ = (
        *((name, _LONG) for name in ("bits", "inputs", "outputs", "padded", "group_size")),
        *((name, _POINTER) for name in ("weight", "scales", "codebook", "bias")),
    )


class _Layer(ctypes.Structure):
    """Corresponds to DecoderLayer in decoder_layers.cpp."""

    _fields_ = (
        *((name, _POINTER) for name in ("input_norm", "post_attention_norm")),
        *((name, _Linear) for name in ("qkv", "o", "gate_up", "down")),
        ("window", _LONG),
    )


class _Prompt(ctypes.Structure):
    """Corresponds to PromptRows in decoder_layers.cpp."""

    _fields_ = (("table", _POINTER), ("rows", _LONG), ("context", _LONG))


class _Step(ctypes.Structure):
    """Corresponds to DecoderStep in decoder_layers.cpp."""

    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, _POINTER) for name in ("hidden", "buffers", "cos", "sin", "cached", "cached_scales")),
        *((name, _POINTER) for name in ("slots", "tables", "contexts")),
        ("prompts", ctypes.POINTER(_Prompt)),
        *((name, _LONG) for name in ("num_layers", "rows", "num_single", "num_prompts")),
        *((name, _LONG) for name in ("size", "heads", "kv_heads", "head_size")),
        *((name, _LONG) for name in ("intermediate", "num_blocks", "block_size", "table_width")),
        *((name, _FLOAT) for name in ("eps", "attention_scale")),
    )


class NativeLayers:
    """Layers of a decoder with a gated SiLU. If the data of a parameter is replaced, create new ones."""

    def __init__(self, layers: Sequence[LayerWeights], eps: float, kernels: NativeKernels) -> None:
        self._kernels = kernels
        self._eps = eps
        self._size = layers[0].o.shape.out_features
        self._attended_size = layers[0].o.shape.in_features
        self._intermediate = layers[0].down.shape.in_features
        self._weights = layers  # keeps the memory of the pointers below
        self._layers = (_Layer * len(layers))(*map(_layer, layers))
        self._max_rows = _max_rows(layers, kernels)

    @classmethod
    def create(
        cls, layers: Sequence[LayerWeights], eps: float, head_dim: int, kernels: NativeKernels
    ) -> NativeLayers | None:
        """Return the layers, or None if the C++ kernels do not support them."""
        linears = [each for layer in layers for each in _linears(layer)]
        is_supported = head_dim % _LANES == 0 and bool(layers)
        if not is_supported or not all(_is_native(each, kernels) for each in linears):
            return None
        return cls(layers, eps, kernels)

    def compute(self, x: Tensor, rotation: Rotation, rows: StepRows) -> Tensor | None:
        """Return the sum of the embeddings x [tokens, hidden] and the outputs of all layers.

        The results are bitwise identical to those of separate operations. Returns None if the step has too
        many tokens for this function.
        """
        if not 0 < len(x) <= self._max_rows:
            return None
        hidden = x.clone(memory_format=torch.contiguous_format)
        spec, tables = rows.cache.spec, rows.tables.contiguous()
        cached, scales = rows.cache.tensors
        cos, sin = rotation.cos.contiguous(), rotation.sin.contiguous()
        # normed, projected, attended, qkv, gate_up and gated
        kv_size = spec.num_kv_heads * spec.head_dim
        row_size = 2 * self._size + 2 * (self._attended_size + kv_size) + 3 * self._intermediate
        buffers = x.new_empty(len(x), row_size)
        prompts = (_Prompt * len(rows.prompts))(*map(_prompt, rows.prompts))
        step = _Step(
            self._layers,
            *map(_pointer, (hidden, buffers, cos, sin, cached, scales)),
            *map(_pointer, (rows.slots, tables, rows.contexts)),
            *(prompts, len(self._layers), len(x), len(rows.contexts), len(prompts)),
            *(self._size, self._attended_size // spec.head_dim, spec.num_kv_heads, spec.head_dim),
            *(self._intermediate, spec.num_blocks, spec.block_size),
            *(tables.shape[1], self._eps, spec.head_dim**-0.5),
        )
        self._kernels.decoder_layers(hidden.dtype, ctypes.addressof(step))
        return hidden


def _max_rows(layers: Sequence[LayerWeights], kernels: NativeKernels) -> int:
    if any(isinstance(each, DenseLinear) for layer in layers for each in _linears(layer)):
        return MAX_BF16_ROWS
    return _MAX_AMX_ROWS if kernels.uses_amx else sys.maxsize


def _linears(layer: LayerWeights) -> tuple[Linear, ...]:
    return layer.qkv, layer.o, layer.gate_up, layer.down


def _is_native(linear: Linear, kernels: NativeKernels) -> bool:
    """Return whether the C++ kernels compute this layer for a few rows."""
    if type(linear) in (QuantizedLinear, PackedLinear):
        return True
    return type(linear) is DenseLinear and kernels.has_bf16_linear and linear.weight.dtype == torch.bfloat16


def _prompt(prompt: PromptRows) -> _Prompt:
    num_rows = prompt.tokens.stop - prompt.tokens.start
    return _Prompt(_pointer(prompt.table), num_rows, prompt.context)


def _layer(weights: LayerWeights) -> _Layer:
    norms = (_pointer(weights.input_norm), _pointer(weights.post_attention_norm))
    return _Layer(*norms, *map(_linear, _linears(weights)), weights.window)


def _linear(linear: Linear) -> _Linear:
    sizes = (linear.shape.in_features, linear.shape.out_features)
    if isinstance(linear, QuantizedLinear):
        weight = linear.weight
        stored = (weight.packed, weight.scales, weight.codebook, linear.bias)
        formats = (weight.padded_in_features, weight.group_size)
        return _Linear(weight.bits, *sizes, *formats, *map(_pointer, stored))
    if isinstance(linear, PackedLinear):
        padded = 2 * linear.packed.shape[1]  # number of inputs including padding
        pointers = map(_pointer, (linear.packed, None, None, linear.bias))
        return _Linear(_BF16_BITS, *sizes, padded, 0, *pointers)
    assert isinstance(linear, DenseLinear)
    return _Linear(_BF16_BITS, *sizes, 0, 0, *map(_pointer, (linear.weight, None, None, linear.bias)))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
