"""The interface of a forward pass's kernels, implemented in torch, in C++ (CPU) and in Triton (GPU)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["INT4_GROUP", "INT8_GROUP", "PANEL_OUTPUTS", "Kernels", "LayerCache", "QuantizedWeight"]

PANEL_OUTPUTS = 32  # outputs that are stored together
INT4_GROUP = (
    64  # inputs per scale of an int4 weight and of its x; inputs are padded to a multiple, in int8 too
)
INT8_GROUP = 256  # inputs per scale of x beside an int8 weight, which has one scale per output


class LayerCache(NamedTuple):
    """One layer of a paged KV cache as stored. Scales are None unless keys and values are int8."""

    keys: Tensor  # [slots, kv_heads, head_dim]
    values: Tensor  # [slots, kv_heads, head_dim]
    block_size: int
    key_scales: Tensor | None = None  # fp32 [slots, kv_heads]
    value_scales: Tensor | None = None  # fp32 [slots, kv_heads]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """W [out_features, in_features] in 8 or 4 bits per number: W = scale * code.

    Codes are whole numbers from -127 to 127 (8 bits) or from -8 to 7 (4 bits). ``packed`` is uint8 [panels,
    PANEL_OUTPUTS * padded_in_features * bits / 8]; the order of its bytes is the kernels'. ``scales`` are
    fp32 [out_features] for 8 bits and bf16 [panels, groups, PANEL_OUTPUTS] for 4.
    """

    bits: int
    in_features: int
    out_features: int
    packed: Tensor
    scales: Tensor

    @property
    def padded_in_features(self) -> int:
        return -(-self.in_features // INT4_GROUP) * INT4_GROUP

    @property
    def group_size(self) -> int:
        """Inputs per scale of x; the last group may be smaller."""
        return INT4_GROUP if self.bits == 4 else INT8_GROUP

    @property
    def num_panels(self) -> int:
        return -(-self.out_features // PANEL_OUTPUTS)


class Kernels(ABC):
    """All tensors of one call have one dtype and device, unless stated otherwise."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For logs."""

    @abstractmethod
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., inputs] W^T + b, with W [outputs, inputs]."""

    @abstractmethod
    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        """As `linear`; bias is fp32. Each group of a row of x is rounded to 8 bits with its own scale.

        Rows are independent: a row's result is the same, to the bit, in any batch.
        """

    @abstractmethod
    def pack_weight(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        """Quantize rows [first, first + len(rows)) of W, of any dtype, and write them to ``weight``."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., size] over the root of its mean square, rounded to x's dtype, times weight [size]."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return `rms_norm` of x + residual, and that sum: the new residual."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    @abstractmethod
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate pairs (x[i], x[i + half]) of x [tokens, heads, 2 * half]; cos and sin [tokens, 1, half]."""

    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        """Rotate q and k, write k and v to the cache, and return q [tokens, heads, head_dim].

        qkv [tokens, heads + 2 * kv_heads, head_dim] is q, k, v in this order. k and v go to ``slots``, int64
        [tokens], of keys and values [slots, kv_heads, head_dim]. Identical tokens may share a slot.
        """
        kv_heads = keys.shape[1]
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        keys.index_copy_(0, slots, self.rope(k, cos, sin))
        values.index_copy_(0, slots, v)
        return self.rope(q, cos, sin)

    @abstractmethod
    def silu_and_mul(self, x: Tensor) -> Tensor:
        """silu(left half) * right half of x [..., 2 * size]."""

    @abstractmethod
    def quick_gelu(self, x: Tensor) -> Tensor:
        """x * sigmoid(1.702 x)."""

    @abstractmethod
    def vision_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention without a mask within each tile; all [tiles, positions, heads, head_dim]."""
