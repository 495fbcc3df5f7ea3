"""The Python interface to the C++ kernels. Their results match those of the torch kernels up to rounding.

If a C++ kernel does not support an operation, for example because of its dtype, the torch kernel is called
instead.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llava_worker.model.cpu.build import KernelsUnavailable
from llava_worker.model.cpu.load import Library, capabilities, load, variant_for
from llava_worker.model.kernels.interface import KernelOrigin, Kernels, LayerCache, QuantizedWeight
from llava_worker.model.kernels.torch_impl import TorchKernels

__all__ = ["MAX_BF16_ROWS", "NativeKernels", "cpu_kernels"]

logger = logging.getLogger(__name__)

# Maximum number of rows for which the bf16 kernel in C++ is faster than torch's matrix product.
MAX_BF16_ROWS = 8
_MAX_REASON_LENGTH = 300  # characters; the reason is sent in each heartbeat
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
# Parameter types, in the order of the C++ declarations. The last parameter is always the number of threads.
_SIGNATURES: dict[str, list[Any]] = {
    "quantized_linear": [
        *(_INT, _INT, _POINTER, _LONG, _LONG),  # bits, is_bf16, x, rows, inputs
        *(_POINTER, _POINTER, _POINTER),  # packed, scales, codebook
        *(_LONG, _LONG, _INT),  # outputs, padded, group
        *(_POINTER, _POINTER, _INT),
    ],
    "pack_weight": [
        *(_INT, _INT, _POINTER, _LONG, _LONG, _LONG),  # bits, is_bf16, rows, their number, inputs, first
        *(_POINTER, _POINTER, _POINTER, _LONG, _INT),  # packed, scales, codebook, padded
    ],
    "bf16_linear": [_POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _INT],
    "packed_bf16_linear": [_POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _INT],
    "pack_bf16_weight": [_POINTER, _LONG, _LONG, _LONG, _POINTER, _INT],
    "rms_norm": [_INT, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _POINTER, _INT],
    "add_rms_norm": [_INT, *(_POINTER,) * 3, _FLOAT, _LONG, _LONG, _POINTER, _POINTER, _INT],
    "rope": [_INT, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _INT],
    "rope_and_cache": [
        *(_INT, _POINTER, _POINTER, _POINTER),  # is_bf16, qkv, cos, sin
        *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER),  # keys, values, scales, slots
        *(_LONG, _LONG, _LONG, _LONG, _LONG, _INT),
    ],
    "silu_and_mul": [_INT, _POINTER, _LONG, _LONG, _POINTER, _INT],
    "quick_gelu": [_INT, _POINTER, _LONG, _LONG, _POINTER, _INT],
    "decode_attention": [
        *(_INT, _POINTER, _LONG),  # is_bf16, q
        *(
            _POINTER,
            _POINTER,
            _POINTER,
            _POINTER,
            _POINTER,
            _POINTER,
        ),  # keys, values, scales, tables, contexts
        *(_LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _FLOAT, _POINTER, _INT),
    ],
    "decoder_layers": [_INT, _POINTER, _INT],  # is_bf16, step
    "prefill_attention": [
        *(_POINTER, _LONG),  # q
        *(_POINTER, _POINTER, _LONG, _LONG, _LONG),  # keys, values and their strides
        *(_POINTER, _POINTER, _POINTER),  # scales, table
        *(_LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _INT, _FLOAT, _POINTER, _INT),
    ],
}


@cache
def cpu_kernels() -> NativeKernels | TorchKernels:
    """Return the C++ kernels. If they are unavailable, log a warning and return torch kernels."""
    try:
        return NativeKernels(load(variant_for(capabilities())))
    except (KernelsUnavailable, OSError) as error:
        logger.warning("C++ kernels are unavailable; falling back to torch kernels: %s", error)
        return TorchKernels(fallback_reason=" ".join(str(error).split())[:_MAX_REASON_LENGTH])


class NativeKernels(Kernels):
    """The C++ kernels in ``library``."""

    def __init__(self, library: Library) -> None:
        self._variant = library.variant
        self._source = library.source
        self._library_digest = library.digest
        self._torch = TorchKernels()
        self._functions = {
            name: _function(library.functions, name, signature)
            for name, signature in _SIGNATURES.items()
            if hasattr(library.functions, name)
        }

    @property
    def name(self) -> str:
        return f"C++ for {self._variant}"

    @property
    def origin(self) -> KernelOrigin:
        return KernelOrigin(source=self._source, variant=self._variant)

    @property
    def packing(self) -> str:
        return f"{self._variant} {self._library_digest}"  # compilers may round differently

    @property
    def uses_amx(self) -> bool:
        """Whether products and prompts are computed with AMX, by `quantized_linear` and torch."""
        return self._variant == "amx"

    @property
    def has_bf16_linear(self) -> bool:
        """Whether products of a few rows with bf16 weights are computed in C++."""
        return "bf16_linear" in self._functions

    @property
    def packs_bf16(self) -> bool:
        """Whether products with packed bf16 weights are computed in C++ and faster than torch's.

        On CPUs with AMX, torch is faster for many rows, because its products use AMX.
        """
        return "packed_bf16_linear" in self._functions and not self.uses_amx

    def packed_bf16_linear(self, x: Tensor, packed: Tensor, num_outputs: int, bias: Tensor | None) -> Tensor:
        """Return x W^T + b for bf16 x [..., inputs] and a W from `pack_bf16_weight`.

        The result for a row does not depend on the other rows: it is bitwise identical in every batch.
        """
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], num_outputs)
        if num_rows := x.numel() // x.shape[-1]:
            self._call("packed_bf16_linear", x, num_rows, x.shape[-1], packed, num_outputs, bias, y)
        return y

    def pack_bf16_weight(self, rows: Tensor, first: int, packed: Tensor) -> None:
        """Store ``rows`` [n, inputs] as rows [first, first + n) of W.

        ``packed`` is bf16 [panels, pairs of inputs, PANEL_OUTPUTS, 2]. Padding is not changed.
        """
        rows = rows.bfloat16().contiguous()
        self._call("pack_bf16_weight", rows, *rows.shape, first, packed)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        num_rows = x.numel() // x.shape[-1]
        is_supported = self.has_bf16_linear and x.dtype == weight.dtype == torch.bfloat16
        if not is_supported or not 0 < num_rows <= MAX_BF16_ROWS:
            return self._torch.linear(x, weight, bias)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], len(weight))
        self._call("bf16_linear", x, num_rows, x.shape[-1], weight, len(weight), bias, y)
        return y

    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], weight.out_features)
        num_rows = x.numel() // weight.in_features
        sizes = (weight.out_features, weight.padded_in_features, weight.group_size)
        head = (weight.bits, _is_bf16(x), x, num_rows, weight.in_features)
        self._call("quantized_linear", *head, *_stored(weight), *sizes, bias, y)
        return y

    def pack_weight(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        rows = rows.contiguous() if rows.dtype == torch.bfloat16 else rows.float().contiguous()
        head = (weight.bits, _is_bf16(rows), rows, len(rows), weight.in_features, first)
        self._call("pack_weight", *head, *_stored(weight), weight.padded_in_features)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        size = x.shape[-1]
        self._call("rms_norm", _is_bf16(x), x, weight, eps, x.numel() // size, size, y)
        return y

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        y, total = torch.empty_like(x), torch.empty_like(x)
        size = x.shape[-1]
        shape = (x.numel() // size, size)
        self._call("add_rms_norm", _is_bf16(x), x, residual, weight, eps, *shape, total, y)
        return y, total

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        tokens, heads, size = x.shape
        if x.stride()[1:] != (size, 1):
            x = x.contiguous()
        y = x.new_empty(x.shape)
        angles = (cos.contiguous(), sin.contiguous())
        self._call("rope", _is_bf16(x), x, x.stride(0), *angles, tokens, heads, size // 2, y)
        return y

    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        """Compute the same as `Kernels.rope_and_cache`, for a head-major cache. Overwrites q and k in qkv.

        ``qkv`` must be contiguous, and its ``head_dim`` a multiple of 16.
        """
        tokens, num_all, size = qkv.shape
        kv_heads = cache.keys.shape[1]
        heads = num_all - 2 * kv_heads
        stored = (cache.keys, cache.values, cache.key_scales, cache.value_scales, slots)
        shape = (tokens, heads, kv_heads, size, cache.block_size)
        self._call("rope_and_cache", _is_bf16(qkv), qkv, cos.contiguous(), sin.contiguous(), *stored, *shape)
        return qkv[:, :heads]

    def silu_and_mul(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        size = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], size)
        self._call("silu_and_mul", _is_bf16(x), x, x.numel() // (2 * size), size, y)
        return y

    def quick_gelu(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        self._call("quick_gelu", _is_bf16(x), x, x.numel() // x.shape[-1], x.shape[-1], y)
        return y

    def vision_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, num_positions, _, head_dim = q.shape
        if head_dim % 16 or not self.uses_prefill_attention(q.dtype):
            return self._torch.vision_attention(q, k, v)
        if k.stride() != v.stride() or k.stride(3) != 1:
            k, v = k.contiguous(), v.contiguous()
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # of a tile: one block, [heads, positions, head_dim]
        out, one_block = q.new_empty(q.shape), torch.zeros(1, dtype=torch.int64)
        for tile in range(len(q)):
            stored = LayerCache(k[tile : tile + 1], v[tile : tile + 1], block_size=num_positions)
            self.prefill_attention(
                q[tile], stored, one_block, num_positions, 0, is_causal=False, out=out[tile]
            )
        return out

    def decode_attention(
        self, q: Tensor, stored: LayerCache, tables: Tensor, contexts: Tensor, window: int, *, out: Tensor
    ) -> None:
        """Compute attention as in `AttentionPlan.attend`, for one query per row.

        Slots that rows share, such as those of an image, are read only once.

        Shapes: q and out [rows, heads, head_dim]; tables int64 [rows, blocks]; contexts int64 [rows].
        ``head_dim`` must be a multiple of 16. ``stored`` must be head-major. A ``window`` of 0 means
        unlimited.
        """
        rows, heads, size = q.shape
        if q.stride()[1:] != (size, 1):
            q = q.contiguous()
        shape = (rows, heads, stored.keys.shape[1], size, tables.shape[1], stored.block_size, window)
        scales = (stored.key_scales, stored.value_scales)
        pointers = (q, q.stride(0), stored.keys, stored.values, *scales, tables.contiguous(), contexts)
        self._call("decode_attention", _is_bf16(q), *pointers, *shape, size**-0.5, out)

    def uses_prefill_attention(self, dtype: torch.dtype) -> bool:
        """Return whether `prefill_attention` supports this dtype and is faster than torch's attention.

        On CPUs with AMX, torch is faster, because its attention uses AMX and `prefill_attention` does not.
        """
        return dtype == torch.bfloat16 and "prefill_attention" in self._functions and not self.uses_amx

    def prefill_attention(
        self,
        q: Tensor,
        stored: LayerCache,
        table: Tensor,
        context: int,
        window: int,
        *,
        is_causal: bool = True,
        out: Tensor,
    ) -> None:
        """Compute attention as in `AttentionPlan.attend`, for the last len(q) of ``context`` tokens.

        Shapes: q and out bf16 [tokens, heads, head_dim]; table int64 [blocks]. ``head_dim`` must be a
        multiple of 16. ``stored`` must be head-major. A ``window`` of 0 means unlimited.
        """
        tokens, heads, size = q.shape
        if q.stride()[1:] != (size, 1):
            q = q.contiguous()
        kv_heads, strides = stored.keys.shape[1], stored.keys.stride()[:3]
        shape = (tokens, context, heads, kv_heads, size, stored.block_size, window, int(is_causal))
        cached = (stored.keys, stored.values, *strides, stored.key_scales, stored.value_scales)
        self._call("prefill_attention", q, q.stride(0), *cached, table.contiguous(), *shape, size**-0.5, out)

    def decoder_layers(self, dtype: torch.dtype, step: int) -> None:
        """Compute all layers of a decoder. ``step`` is the address of a DecoderStep (decoder_layers.cpp).

        ``dtype`` is that of the hidden states.
        """
        self._call("decoder_layers", int(dtype == torch.bfloat16), step)

    def _call(self, name: str, *arguments: Tensor | float | None) -> None:
        """Call a C++ function. Convert tensors to pointers and append the number of threads."""
        pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        self._functions[name](*pointers, torch.get_num_threads())


def _function(library: ctypes.CDLL, name: str, signature: list[Any]) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes, function.restype = signature, None
    return function  # type: ignore[no-any-return]


def _stored(weight: QuantizedWeight) -> tuple[Tensor, Tensor, Tensor | None]:
    return weight.packed, weight.scales, weight.codebook


def _is_bf16(x: Tensor) -> int:
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"The C++ kernels support bf16 and fp32, not {x.dtype}.")
    return int(x.dtype == torch.bfloat16)
