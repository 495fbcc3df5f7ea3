"""What a step computes, as an interface: in torch on any device, in C++ on a CPU with the instructions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GROUP", "LONG_GROUP", "PANEL", "Kernels", "QuantizedWeight"]

PANEL = 32  # outputs that lie together
GROUP = 64  # inputs that share a scale in 4 bits, of the weight and of x; inputs are padded to whole groups
LONG_GROUP = 256  # inputs that share a scale of x beside a weight in 8 bits, which has one scale for all


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """W [outputs, inputs] in 8 or 4 bits a number. What the bytes of ``packed`` mean, its kernels know.

    ``packed`` uint8 [panels, PANEL * padded * bits / 8]. ``scales`` fp32 [outputs], or of 4 bits bf16
    [panels, groups, PANEL]. W = scale * whole number, of -127 to 127, or of -8 to 7.
    """

    bits: int
    inputs: int
    outputs: int
    packed: Tensor
    scales: Tensor

    @property
    def padded(self) -> int:
        """Inputs with padding."""
        return -(-self.inputs // GROUP) * GROUP

    @property
    def group(self) -> int:
        """Inputs of a row of x that share a scale; the last group may be smaller."""
        return GROUP if self.bits == 4 else LONG_GROUP

    @property
    def panels(self) -> int:
        return -(-self.outputs // PANEL)


class Kernels(ABC):
    """All tensors of one call are of one dtype and on one device, unless it says otherwise."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For logs."""

    @abstractmethod
    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., inputs] W^T + b, with W [outputs, inputs]."""

    @abstractmethod
    def quantized(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        """As `dense`; bias is fp32. Each group of a row of x is rounded to 8 bits with a scale of its own.

        Rows do not see each other: each comes out the same, to the bit, whatever stands beside it.
        """

    @abstractmethod
    def pack(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        """Quantise rows [first, first + len(rows)) of W, of any dtype, and put them into ``weight``."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., size] over the root of its mean square, rounded to x's dtype, times weight [size]."""

    def add_rms_norm(self, x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x + more, and `rms_norm` of that."""
        total = x + more
        return total, self.rms_norm(total, weight, eps)

    @abstractmethod
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn pairs (x[i], x[i + half]) of x [tokens, heads, 2 * half]; cos and sin [tokens, 1, half]."""

    def turn_and_keep(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        """Of each token's heads, those of q, of k and of v in a row: q turned, [tokens, heads, head_dim].

        k, turned, and v go to ``slots``, int64 [tokens], of keys and values [slots, kv_heads, head_dim].
        qkv [tokens, heads + 2 * kv_heads, head_dim]. Tokens that are the same may share a slot.
        """
        kv_heads = keys.shape[1]
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        keys.index_copy_(0, slots, self.rotate(k, cos, sin))
        values.index_copy_(0, slots, v)
        return self.rotate(q, cos, sin)

    @abstractmethod
    def silu_gate(self, x: Tensor) -> Tensor:
        """silu(left half) * right half of x [..., 2 * size]."""

    @abstractmethod
    def quick_gelu(self, x: Tensor) -> Tensor:
        """x * sigmoid(1.702 x)."""

    @abstractmethod
    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every place sees every other of its picture; all [tiles, places, heads, head_dim]."""
