"""Torch kernels. They are the reference on all devices, and the fallback if no faster kernel is available."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_worker.model.kernels.interface import (
    PANEL_OUTPUTS,
    WEIGHT_GROUP,
    KernelOrigin,
    Kernels,
    QuantizedWeight,
)
from llava_worker.model.kernels.w8a8 import quantize_rows

__all__ = ["TorchKernels"]

# Outputs per product of 4-bit or 5-bit weights: enough to be efficient, but few enough that unpacked weights
# take little memory.
_UNPACKED_OUTPUTS = 1024

# For each group of inputs, the codes [rows, group_size] and scales [rows, 1].
_Groups = list[tuple[Tensor, Tensor]]


class TorchKernels(Kernels):
    """Torch kernels. They use weights that are packed row by row.

    The shape of a packed weight is [panels * PANEL_OUTPUTS, padded_in_features * bits / 8]. 8-bit codes are
    stored as signed bytes. A 4-bit code of input i is in the low half of byte i, and that of input
    padded_in_features / 2 + i is in its high half. These bytes contain the low four bits of 5-bit codes, too.
    They are followed by the fifth bits: that of input j * padded_in_features / 8 + i is bit j of byte i.

    ``fallback_reason`` says why these kernels replace faster ones. It is empty if they are used by design.
    """

    def __init__(self, fallback_reason: str = "") -> None:
        self._fallback_reason = fallback_reason

    @property
    def name(self) -> str:
        return "torch"

    @property
    def origin(self) -> KernelOrigin:
        return KernelOrigin(source="torch", fallback_reason=self._fallback_reason)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        padding = weight.padded_in_features - weight.in_features
        rows = F.pad(x.reshape(-1, x.shape[-1]).float(), (0, padding))
        groups = [quantize_rows(group) for group in torch.split(rows, weight.group_size, dim=1)]
        y = _int8_matmul(groups, weight) if weight.bits == 8 else self._codebook_matmul(groups, weight)
        y = y if bias is None else y + bias
        return y.to(x.dtype).view(*x.shape[:-1], weight.out_features)

    def pack_weight(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        rows = F.pad(rows.float(), (0, weight.padded_in_features - weight.in_features))
        outputs = torch.arange(first, first + len(rows), device=rows.device)
        packed = weight.packed.view(weight.num_panels * PANEL_OUTPUTS, -1)  # one row per output
        if weight.bits == 8:
            codes, scale = quantize_rows(rows)
            weight.scales[outputs] = scale[:, 0]
            packed[outputs] = codes.to(torch.int8).view(torch.uint8)
            return
        codes, scales = _quantize_groups(rows.view(len(rows), -1, WEIGHT_GROUP), _values(weight))
        weight.scales[outputs // PANEL_OUTPUTS, :, outputs % PANEL_OUTPUTS] = scales
        packed[outputs] = self.pack_codes(codes.view(len(rows), -1), weight.bits)

    def pack_codes(self, codes: Tensor, bits: int) -> Tensor:
        """Pack 4-bit or 5-bit codes [rows, inputs]. Return uint8 [rows, inputs * bits / 8]."""
        low, high = (codes & 15).chunk(2, dim=1)
        parts = [low | (high << 4)]
        if bits == 5:
            parts.append(torch.stack([bit << j for j, bit in enumerate((codes >> 4).chunk(8, dim=1))]).sum(0))
        return torch.cat(parts, dim=1).to(torch.uint8)

    def unpack_codes(self, packed: Tensor, bits: int) -> Tensor:
        """Return the codes [rows, inputs] that `pack_codes` packed, in int32."""
        packed = packed.int()
        nibbles = packed[:, : packed.shape[1] * 4 // bits]
        codes = torch.cat([nibbles & 15, nibbles >> 4], dim=1)
        if bits == 5:
            fifth_bits = packed[:, nibbles.shape[1] :]
            codes |= torch.cat([(fifth_bits >> j & 1) << 4 for j in range(8)], dim=1)
        return codes

    def _codebook_matmul(self, groups: _Groups, weight: QuantizedWeight) -> Tensor:  # [rows, out_features]
        x = torch.cat([codes * scale for codes, scale in groups], dim=1)
        y = x.new_empty(len(x), weight.out_features)
        num_padded = weight.num_panels * PANEL_OUTPUTS
        packed, values = weight.packed.view(num_padded, -1), _values(weight)
        scales = weight.scales.transpose(1, 2).reshape(num_padded, -1, 1)
        for start in range(0, weight.out_features, _UNPACKED_OUTPUTS):
            end = min(start + _UNPACKED_OUTPUTS, weight.out_features)
            codes = self.unpack_codes(packed[start:end], weight.bits)
            w = values[codes].view(end - start, -1, WEIGHT_GROUP)
            y[:, start:end] = x @ (w * scales[start:end]).flatten(1).t()
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * wide.to(x.dtype)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    def silu_and_mul(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    def quick_gelu(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)

    def vision_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _values(weight: QuantizedWeight) -> Tensor:
    """Return the values of the codes, fp32 [2^bits]. Raises ValueError if the weight has no codebook."""
    if weight.codebook is None:
        raise ValueError(f"a weight with {weight.bits} bits has no codebook")
    return weight.codebook.float()


def _quantize_groups(x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize x, fp32 [rows, groups, WEIGHT_GROUP]. Return codes, and bf16 scales [rows, groups].

    The initial scale maps the weight with the largest magnitude to the first value, which has the largest
    magnitude. The final scale is the least-squares optimum for the codes that result from the initial scale.
    """
    end = x.gather(2, x.abs().argmax(2, keepdim=True))
    nearest = values[_nearest_codes(x, (end / values[0]).bfloat16(), values)].double()
    product, square = (x * nearest).sum(2, keepdim=True), (nearest * nearest).sum(2, keepdim=True)
    scale = (product / square).float().bfloat16()  # no value is 0
    return _nearest_codes(x, scale, values), scale[..., 0]


def _nearest_codes(x: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    wide = scale.float()
    scaled = x * torch.where(wide != 0, 1.0 / wide, 0.0)
    return torch.bucketize(scaled, (values[:-1] + values[1:]) / 2)


def _int8_matmul(groups: _Groups, weight: QuantizedWeight) -> Tensor:  # [rows, out_features]
    w = weight.packed.view(torch.int8).view(-1, weight.padded_in_features)[: weight.out_features]
    parts = torch.split(w, weight.group_size, dim=1)
    products = [
        torch._int_mm(codes.to(torch.int8), part.t()) * scale
        for (codes, scale), part in zip(groups, parts, strict=True)
    ]
    return torch.stack(products).sum(0) * weight.scales
