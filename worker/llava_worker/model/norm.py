"""The norms of decoders. Each adds the residual to its input first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.kernels.w8a8 import QuantizedRows
from llava_worker.model.quantization.precision import Precision

__all__ = ["LayerNorm", "Normed", "RMSNorm"]

Normed = Tensor | QuantizedRows  # the output of a norm in a layer, [tokens, hidden]


class RMSNorm(nn.Module):
    """RMSNorm, computed in fp32 and, as in training, rounded before being multiplied by the weight."""

    def __init__(self, config: TextConfig, precision: Precision, device: torch.device) -> None:
        super().__init__()
        weight = torch.empty(config.hidden_size, dtype=precision.dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._eps = config.rms_norm_eps
        self._kernels = precision.kernels
        self._w8a8 = precision.w8a8

    def for_linear(self, x: Tensor, residual: Tensor | None) -> tuple[Normed, Tensor]:
        """Return the same as a call, but quantize the norm if this is the input format of linear layers."""
        if self._w8a8 is None:
            return self(x, residual)
        return self._kernels.rms_norm_w8a8(x, residual, self.weight, self._eps, self._w8a8)

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and x + residual itself, both [tokens, hidden]."""
        if residual is None:
            return self._kernels.rms_norm(x, self.weight, self._eps), x
        return self._kernels.add_rms_norm(x, residual, self.weight, self._eps)


class LayerNorm(nn.Module):
    """LayerNorm with a weight and a bias, computed by torch on all devices."""

    def __init__(self, config: TextConfig, precision: Precision, device: torch.device) -> None:
        super().__init__()
        size, dtype = config.hidden_size, precision.dtype
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
        self._eps = config.layer_norm_eps

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and x + residual itself, both [tokens, hidden]."""
        total = x if residual is None else x + residual
        return functional.layer_norm(total, total.shape[-1:], self.weight, self.bias, self._eps), total
