"""The interface of the kernels for the forward pass, which use torch, C++ (on CPUs) or Triton (on GPUs)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llava_worker.model.kernels.codebook import CODEBOOKS
from llava_worker.model.kernels.kv_quantization import quantize_kv_rows
from llava_worker.model.kernels.w8a8 import QuantizedRows, W8A8Format

__all__ = [
    "INT8_GROUP",
    "PANEL_OUTPUTS",
    "WEIGHT_GROUP",
    "KernelOrigin",
    "Kernels",
    "LayerCache",
    "QuantizedWeight",
]

PANEL_OUTPUTS = 32  # outputs per panel of a packed weight
# Inputs per scale of a 4-bit or 5-bit weight, and of the x that is multiplied by it. Inputs of 8-bit weights
# are also padded to a multiple of this number.
WEIGHT_GROUP = 64
INT8_GROUP = (
    256  # inputs in x that share one scale if the weight has 8 bits; the weight has one scale per output
)


class KernelOrigin(NamedTuple):
    """The origin of kernels, with the values and meanings of `llava_wire.messages.heartbeat.KernelInfo`."""

    source: str
    variant: str = ""
    fallback_reason: str = ""


class LayerCache(NamedTuple):
    """The tensors in which a paged KV cache stores one layer. Scales are None unless the cache is int8.

    The shapes are those of a token-major cache. In a head-major cache, [blocks, kv_heads, block_size]
    replaces [slots, kv_heads].
    """

    keys: Tensor  # [slots, kv_heads, head_dim]
    values: Tensor  # [slots, kv_heads, head_dim]
    block_size: int
    key_scales: Tensor | None = None  # fp32 [slots, kv_heads]
    value_scales: Tensor | None = None  # fp32 [slots, kv_heads]

    @property
    def is_int8(self) -> bool:
        return self.key_scales is not None

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values, both [tokens, kv_heads, head_dim], to ``slots``, int64 [tokens].

        The cache must be token-major.
        """
        for stored, scales, rows in ((self.keys, self.key_scales, k), (self.values, self.value_scales, v)):
            if scales is None:
                stored.index_copy_(0, slots, rows)
            else:
                codes, row_scales = quantize_kv_rows(rows)
                stored.index_copy_(0, slots, codes)
                scales.index_copy_(0, slots, row_scales)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight W [out_features, in_features] quantized to 8, 5 or 4 bits: W = scale * value of the code.

    An 8-bit code is its own value, an integer from -127 to 127. A 4-bit or 5-bit code is an index into
    ``codebook``, int8 [2^bits], whose values are in ascending order. The first value has the largest
    magnitude, and none is 0.

    Codes are stored in ``packed``, uint8 [panels, PANEL_OUTPUTS * padded_in_features * bits / 8], in a layout
    that depends on the kernel. ``scales`` is fp32 [out_features] for 8 bits and bf16 [panels, groups,
    PANEL_OUTPUTS] otherwise.
    """

    bits: int
    in_features: int
    out_features: int
    packed: Tensor
    scales: Tensor
    codebook: Tensor | None = None

    @property
    def padded_in_features(self) -> int:
        return -(-self.in_features // WEIGHT_GROUP) * WEIGHT_GROUP

    @property
    def group_size(self) -> int:
        """The number of inputs per scale of x. The last group may be smaller."""
        return INT8_GROUP if self.bits == 8 else WEIGHT_GROUP

    @property
    def num_panels(self) -> int:
        return -(-self.out_features // PANEL_OUTPUTS)


class Kernels(ABC):
    """Base class for kernels. Unless noted otherwise, all tensors in a call share one dtype and device."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the kernels in logs."""

    @property
    @abstractmethod
    def origin(self) -> KernelOrigin:
        """The origin of the kernels, which the worker reports in its heartbeat."""

    @property
    def packing(self) -> str:
        """Identifies the implementation of `pack_weight`, if it is not part of this package."""
        return ""

    def codebook(self, bits: int) -> tuple[int, ...]:
        """Return the values of the codes of a weight with 4 or 5 bits."""
        return CODEBOOKS[bits]

    @abstractmethod
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + b for x [..., inputs] and W [outputs, inputs]."""

    @abstractmethod
    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        """Return x W^T + b for a quantized W and an fp32 b.

        Each row of x is quantized to 8 bits with one scale per group. The result for a row does not depend on
        the other rows: it is bitwise identical in every batch.
        """

    @abstractmethod
    def pack_weight(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        """Quantize ``rows``, which may have any dtype, and store them in ``weight`` from ``first`` onward."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Divide x [..., size] by its RMS, round to the dtype of x, and multiply by weight [size]."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return the `rms_norm` of x + residual, and x + residual itself, which is the new residual."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def rms_norm_w8a8(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fmt: W8A8Format
    ) -> tuple[QuantizedRows, Tensor]:
        """Return the quantized `rms_norm` of x + residual [rows, size], and x + residual."""
        if residual is None:
            normed, total = self.rms_norm(x, weight, eps), x
        else:
            normed, total = self.add_rms_norm(x, residual, weight, eps)
        return self.quantize_w8a8(normed, fmt), total

    def silu_and_mul_w8a8(self, x: Tensor, fmt: W8A8Format) -> QuantizedRows:
        """Return the quantized `silu_and_mul` of x [rows, 2 * size]."""
        return self.quantize_w8a8(self.silu_and_mul(x), fmt)

    def quantize_w8a8(self, x: Tensor, fmt: W8A8Format) -> QuantizedRows:
        """Quantize x [rows, size]."""
        return fmt.quantize(x.float())

    def linear_w8a8(
        self, x: QuantizedRows, w: QuantizedRows, bias: Tensor | None, fmt: W8A8Format, dtype: torch.dtype
    ) -> Tensor:
        """Return x W^T + b in ``dtype``, [rows, outputs]. W is [outputs, inputs]."""
        y = fmt.matmul(*x, *w)
        y = y if bias is None else y + bias
        return y.to(dtype)

    @abstractmethod
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate all pairs (x[i], x[i + half]) in each head.

        Shapes: x [tokens, heads, 2 * half]; cos and sin [tokens, 1, half].
        """

    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        """Apply RoPE to q and k, write k and v to the cache, and return q [tokens, heads, head_dim].

        ``qkv`` [tokens, heads + 2 * kv_heads, head_dim] contains q, k and v, in this order. k and v of each
        token are written to the token's slot in ``slots``, int64 [tokens]. Two tokens can share a slot only
        if they are identical. ``qkv`` may be overwritten.
        """
        kv_heads = cache.keys.shape[1]
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        cache.write(slots, self.rope(k, cos, sin), v)
        return self.rope(q, cos, sin)

    @abstractmethod
    def silu_and_mul(self, x: Tensor) -> Tensor:
        """Return silu(left half) * right half for x [..., 2 * size]."""

    @abstractmethod
    def quick_gelu(self, x: Tensor) -> Tensor:
        """Return x * sigmoid(1.702 x)."""

    @abstractmethod
    def vision_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute unmasked attention within each tile; q, k, v [tiles, positions, heads, head_dim]."""
