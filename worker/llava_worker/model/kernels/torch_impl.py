"""The kernels in torch: the reference on every device, and what serves where nothing faster can be had."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_worker.model.kernels.interface import GROUP, PANEL, Kernels, QuantizedWeight

__all__ = ["TorchKernels", "round_rows"]

# Outputs whose 4-bit weights are unpacked at once: much work, and little memory beside the weight.
_UNPACKED_ROWS = 1024


class TorchKernels(Kernels):
    """Bytes lie row by row: [panels * PANEL, padded * bits / 8].

    8 bits are signed bytes. Of 4 bits, plus 8, input i has the low half of a byte, padded / 2 + i the high.
    """

    @property
    def name(self) -> str:
        return "torch"

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def quantized(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        rows = F.pad(x.reshape(-1, x.shape[-1]).float(), (0, weight.padded - weight.inputs))
        groups = [round_rows(group) for group in torch.split(rows, weight.group, dim=1)]
        y = (_times_8 if weight.bits == 8 else _times_4)(groups, weight)
        y = y if bias is None else y + bias
        return y.to(x.dtype).view(*x.shape[:-1], weight.outputs)

    def pack(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        rows = F.pad(rows.float(), (0, weight.padded - weight.inputs))
        places = torch.arange(first, first + len(rows), device=rows.device)
        by_row = weight.packed.view(weight.panels * PANEL, -1)
        if weight.bits == 8:
            whole, scale = round_rows(rows)
            weight.scales[places] = scale[:, 0]
            by_row[places] = whole.to(torch.int8).view(torch.uint8)
            return
        groups, scales = _round_groups(rows.view(len(rows), -1, GROUP))
        weight.scales[places // PANEL, :, places % PANEL] = scales
        low, high = (groups.view(len(rows), -1) + 8).to(torch.uint8).chunk(2, dim=1)
        by_row[places] = low | (high << 4)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * wide.to(x.dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    def silu_gate(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    def quick_gelu(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [rows, n] -> whole numbers of -127 to 127, still fp32, and each row's scale [rows, 1].

    The scale of a row with an infinity or a NaN is none either, so that its result is none.
    """
    most = x.abs().amax(1, keepdim=True)
    # By a tensor: torch divides a plain number through a reciprocal, which rounds twice.
    factor = torch.where(most > 0, torch.tensor(127.0, device=x.device) / most, 0.0)
    return (x * factor).nan_to_num().round(), most / 127.0


def _round_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [rows, groups, GROUP] -> whole numbers of -8 to 7 and scales [rows, groups] in bf16.

    First the largest magnitude becomes -8, the end that has one step more; then the scale that fits the whole
    numbers so found best, in the sense of least squares, takes its place.
    """
    end = x.gather(2, x.abs().argmax(2, keepdim=True))
    whole = _whole(x, (end / -8.0).bfloat16())
    wide = whole.double()
    product, square = (x * wide).sum(2, keepdim=True), (wide * wide).sum(2, keepdim=True)
    scale = torch.where(square > 0, product / square, 0.0).float().bfloat16()
    return _whole(x, scale), scale[..., 0]


def _whole(x: Tensor, scale: Tensor) -> Tensor:
    wide = scale.float()
    return (x * torch.where(wide != 0, 1.0 / wide, 0.0)).round().clamp(-8, 7)


_Groups = list[
    tuple[Tensor, Tensor]
]  # whole numbers [rows, group] and their scales [rows, 1], along the inputs


def _times_8(groups: _Groups, weight: QuantizedWeight) -> Tensor:  # [rows, outputs]
    w = weight.packed.view(torch.int8).view(-1, weight.padded)[: weight.outputs]
    parts = torch.split(w, weight.group, dim=1)
    products = [
        torch._int_mm(whole.to(torch.int8), part.t()) * scale
        for (whole, scale), part in zip(groups, parts, strict=True)
    ]
    return torch.stack(products).sum(0) * weight.scales


def _times_4(groups: _Groups, weight: QuantizedWeight) -> Tensor:
    x = torch.cat([whole * scale for whole, scale in groups], dim=1)
    y = x.new_empty(len(x), weight.outputs)
    by_row = weight.packed.view(weight.panels * PANEL, -1)
    scales = weight.scales.transpose(1, 2).reshape(weight.panels * PANEL, -1, 1)
    for start in range(0, weight.outputs, _UNPACKED_ROWS):
        end = min(start + _UNPACKED_ROWS, weight.outputs)
        both = by_row[start:end]
        w = torch.cat([both & 15, both >> 4], dim=1).view(end - start, -1, GROUP).float() - 8
        y[:, start:end] = x @ (w * scales[start:end]).flatten(1).t()
    return y
