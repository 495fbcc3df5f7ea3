"""Torch kernels. They are the reference on all devices, and the fallback if no faster kernel is available."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_worker.model.kernels.interface import INT4_GROUP, PANEL_OUTPUTS, Kernels, QuantizedWeight

__all__ = ["TorchKernels", "quantize_rows"]

# Outputs per int4 product: enough to be efficient, but few enough that unpacked weights take little memory.
_UNPACKED_OUTPUTS = 1024


class TorchKernels(Kernels):
    """Torch kernels. They use weights that are packed row by row.

    The shape of a packed weight is [panels * PANEL_OUTPUTS, padded_in_features * bits / 8]. 8-bit codes are
    stored as signed bytes. 4-bit codes are stored with an offset of 8: the code of input i is in the low half
    of byte i, and the code of input padded_in_features / 2 + i is in its high half.
    """

    @property
    def name(self) -> str:
        return "torch"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        padding = weight.padded_in_features - weight.in_features
        rows = F.pad(x.reshape(-1, x.shape[-1]).float(), (0, padding))
        groups = [quantize_rows(group) for group in torch.split(rows, weight.group_size, dim=1)]
        y = (_int8_matmul if weight.bits == 8 else _int4_matmul)(groups, weight)
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
        codes, scales = _quantize_int4(rows.view(len(rows), -1, INT4_GROUP))
        weight.scales[outputs // PANEL_OUTPUTS, :, outputs % PANEL_OUTPUTS] = scales
        low, high = (codes.view(len(rows), -1) + 8).to(torch.uint8).chunk(2, dim=1)
        packed[outputs] = low | (high << 4)

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


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize x, fp32 [rows, n]. Return fp32 codes from -127 to 127, and fp32 scales [rows, 1].

    If a row contains an infinity or a NaN, its scale is not finite, so its products are not finite either.
    """
    top = x.abs().amax(1, keepdim=True)
    # The dividend is a tensor, because torch would multiply a Python number by the reciprocal of ``top``,
    # which rounds twice.
    factor = torch.where(top > 0, torch.tensor(127.0, device=x.device) / top, 0.0)
    return (x * factor).nan_to_num().round(), top / 127.0


def _quantize_int4(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize x, fp32 [rows, groups, INT4_GROUP]. Return codes from -8 to 7, and bf16 scales [rows, groups].

    The initial scale maps the value with the largest magnitude to -8, the end of the range that is farther
    from zero. The final scale is the least-squares optimum for the codes that result from the initial scale.
    """
    end = x.gather(2, x.abs().argmax(2, keepdim=True))
    codes = _int4_codes(x, (end / -8.0).bfloat16()).double()
    product, square = (x * codes).sum(2, keepdim=True), (codes * codes).sum(2, keepdim=True)
    scale = torch.where(square > 0, product / square, 0.0).float().bfloat16()
    return _int4_codes(x, scale), scale[..., 0]


def _int4_codes(x: Tensor, scale: Tensor) -> Tensor:
    wide = scale.float()
    return (x * torch.where(wide != 0, 1.0 / wide, 0.0)).round().clamp(-8, 7)


# For each group of inputs, the codes [rows, group_size] and scales [rows, 1].
_Groups = list[tuple[Tensor, Tensor]]


def _int8_matmul(groups: _Groups, weight: QuantizedWeight) -> Tensor:  # [rows, out_features]
    w = weight.packed.view(torch.int8).view(-1, weight.padded_in_features)[: weight.out_features]
    parts = torch.split(w, weight.group_size, dim=1)
    products = [
        torch._int_mm(codes.to(torch.int8), part.t()) * scale
        for (codes, scale), part in zip(groups, parts, strict=True)
    ]
    return torch.stack(products).sum(0) * weight.scales


def _int4_matmul(groups: _Groups, weight: QuantizedWeight) -> Tensor:  # [rows, out_features]
    x = torch.cat([codes * scale for codes, scale in groups], dim=1)
    y = x.new_empty(len(x), weight.out_features)
    num_padded = weight.num_panels * PANEL_OUTPUTS
    packed = weight.packed.view(num_padded, -1)
    scales = weight.scales.transpose(1, 2).reshape(num_padded, -1, 1)
    for start in range(0, weight.out_features, _UNPACKED_OUTPUTS):
        end = min(start + _UNPACKED_OUTPUTS, weight.out_features)
        both = packed[start:end]
        codes = torch.cat([both & 15, both >> 4], dim=1).view(end - start, -1, INT4_GROUP).float() - 8
        y[:, start:end] = x @ (codes * scales[start:end]).flatten(1).t()
    return y
