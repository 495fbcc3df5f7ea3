"""The kernels in C++, on tensors: the same results as in torch, to rounding.

A tensor that a kernel does not serve (another dtype, another device) goes to torch's.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llava_worker.model.cpu.build import KernelsMissing, capabilities, load, variant_for
from llava_worker.model.kernels.interface import Kernels, QuantizedWeight
from llava_worker.model.kernels.torch_impl import TorchKernels

__all__ = ["NativeKernels", "StoredKeys", "native_kernels"]

logger = logging.getLogger(__name__)

# Up to here a weight in bf16 is read faster by our kernel than by torch's product, which wins with many rows.
_FEW_ROWS = 6
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "linear": [
        _INT,
        _INT,
        _POINTER,
        _LONG,
        _LONG,
        _POINTER,
        _POINTER,
        _LONG,
        _LONG,
        _INT,
        _POINTER,
        _POINTER,
        _INT,
    ],
    "pack": [_INT, _INT, _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _LONG, _INT],
    "dense": [_POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _INT],
    "rms_norm": [_INT, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _POINTER, _INT],
    "rotate": [_INT, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _INT],
    "silu_gate": [_INT, _POINTER, _LONG, _LONG, _POINTER, _INT],
    "quick_gelu": [_INT, _POINTER, _LONG, _LONG, _POINTER, _INT],
    "decode_attention": [
        *(_INT, _POINTER, _LONG),  # q
        *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),  # keys, values, scales, places
        *(_LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _FLOAT, _POINTER, _INT),
    ],
    "prompt_attention": [
        *(_POINTER, _LONG),  # q
        *(_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _POINTER),  # keys, values, scales, places
        *(_LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _INT, _FLOAT, _POINTER, _INT),
    ],
}


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """One layer of a cache: [slots, kv_heads, head_dim]; scales [slots, kv_heads] if that is int8."""

    keys: Tensor
    values: Tensor
    block_size: int
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


@cache
def native_kernels() -> NativeKernels | None:
    """This machine's, compiled at the first call; None, and a warning that says why, if it can have none."""
    try:
        variant = variant_for(capabilities())
        return NativeKernels(load(variant), variant)
    except (KernelsMissing, OSError) as error:
        logger.warning("no kernels of our own on this machine, torch's serve instead: %s", error)
        return None


class NativeKernels(Kernels):
    """``variant`` is a key of `build.VARIANTS`, the one that ``library`` was compiled as."""

    def __init__(self, library: ctypes.CDLL, variant: str) -> None:
        self._variant = variant
        self._torch = TorchKernels()
        self._functions = {
            name: _function(library, name, signature)
            for name, signature in _SIGNATURES.items()
            if hasattr(library, name)
        }

    @property
    def name(self) -> str:
        return f"C++ for {self._variant}"

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        num_rows = x.numel() // x.shape[-1]
        is_served = "dense" in self._functions and x.dtype == weight.dtype == torch.bfloat16
        if not is_served or not 0 < num_rows <= _FEW_ROWS:
            return self._torch.dense(x, weight, bias)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], len(weight))
        self._call("dense", x, num_rows, x.shape[-1], weight, len(weight), bias, y)
        return y

    def quantized(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], weight.outputs)
        num_rows = x.numel() // weight.inputs
        sizes = (weight.outputs, weight.padded, weight.group)
        head = (weight.bits, _is_bf16(x), x, num_rows, weight.inputs)
        self._call("linear", *head, weight.packed, weight.scales, *sizes, bias, y)
        return y

    def pack(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        rows = rows.contiguous() if rows.dtype == torch.bfloat16 else rows.float().contiguous()
        head = (weight.bits, _is_bf16(rows), rows, len(rows), weight.inputs, first)
        self._call("pack", *head, weight.packed, weight.scales, weight.padded)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        size = x.shape[-1]
        self._call("rms_norm", _is_bf16(x), x, weight, eps, x.numel() // size, size, y)
        return y

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        tokens, heads, size = x.shape
        if x.stride()[1:] != (size, 1):
            x = x.contiguous()
        y = x.new_empty(x.shape)
        turned = (cos.contiguous(), sin.contiguous())
        self._call("rotate", _is_bf16(x), x, x.stride(0), *turned, tokens, heads, size // 2, y)
        return y

    def silu_gate(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        size = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], size)
        self._call("silu_gate", _is_bf16(x), x, x.numel() // (2 * size), size, y)
        return y

    def quick_gelu(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        self._call("quick_gelu", _is_bf16(x), x, x.numel() // x.shape[-1], x.shape[-1], y)
        return y

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, places, _, size = q.shape
        if size % 16 or not self.takes_prompts(q.dtype):
            return self._torch.attention(q, k, v)
        if k.stride() != v.stride() or k.stride()[2:] != (size, 1):
            k, v = k.contiguous(), v.contiguous()
        out, one_block = q.new_empty(q.shape), torch.zeros(1, dtype=torch.int64)
        for tile in range(len(q)):
            stored = StoredKeys(k[tile], v[tile], block_size=places)
            self.prompt_attention(q[tile], stored, one_block, places, 0, is_causal=False, out=out[tile])
        return out

    def decode_attention(
        self, q: Tensor, stored: StoredKeys, tables: Tensor, contexts: Tensor, window: int, *, out: Tensor
    ) -> None:
        """One query a row over its context, as `AttentionPlan.attend`; ``window`` 0: none.

        q and out [rows, heads, head_dim], of a multiple of 16; int64 tables [rows, blocks], contexts [rows].
        """
        rows, heads, size = q.shape
        if q.stride()[1:] != (size, 1):
            q = q.contiguous()
        shape = (rows, heads, stored.keys.shape[1], size, tables.shape[1], stored.block_size, window)
        scales = (stored.key_scales, stored.value_scales)
        places = (tables.contiguous(), contexts)
        pointers = (q, q.stride(0), stored.keys, stored.values, *scales, *places)
        self._call("decode_attention", _is_bf16(q), *pointers, *shape, size**-0.5, out)

    def takes_prompts(self, dtype: torch.dtype) -> bool:
        """Whether `prompt_attention` is there for queries of that type, and faster than torch's.

        On processors with AMX torch multiplies prompts with it, and this one would not.
        """
        return dtype == torch.bfloat16 and "prompt_attention" in self._functions and self._variant != "amx"

    def prompt_attention(
        self,
        q: Tensor,
        stored: StoredKeys,
        table: Tensor,
        context: int,
        window: int,
        *,
        is_causal: bool = True,
        out: Tensor,
    ) -> None:
        """The last len(q) tokens of a sequence of ``context``, as `AttentionPlan.attend`; ``window`` 0: none.

        q and out bf16 [tokens, heads, head_dim], of a multiple of 16; table int64 [blocks].
        """
        tokens, heads, size = q.shape
        if q.stride()[1:] != (size, 1):
            q = q.contiguous()
        shape = (
            tokens,
            context,
            heads,
            stored.keys.shape[1],
            size,
            stored.block_size,
            window,
            int(is_causal),
        )
        kept = (stored.keys, stored.values, stored.keys.stride(0), stored.key_scales, stored.value_scales)
        self._call("prompt_attention", q, q.stride(0), *kept, table.contiguous(), *shape, size**-0.5, out)

    def _call(self, name: str, *arguments: Tensor | float | None) -> None:
        """With tensors as pointers and torch's number of threads as the last argument."""
        pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        self._functions[name](*pointers, torch.get_num_threads())


def _function(library: ctypes.CDLL, name: str, signature: list[Any]) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes, function.restype = signature, None
    return function  # type: ignore[no-any-return]


def _is_bf16(x: Tensor) -> int:
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"the kernels compute in bf16 and fp32, not in {x.dtype}")
    return int(x.dtype == torch.bfloat16)
