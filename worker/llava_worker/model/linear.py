"""The linear layer: the one place that knows how a matrix is stored.

A quantised form is another class with the same methods, `load_rows` and `__call__`. Rows are what a weight is
split into everywhere here: fused projections put their parts one below the other, and each row can be
quantised when it arrives, before the next is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Linear", "LinearShape"]


@dataclass(frozen=True, slots=True)
class LinearShape:
    """``parts`` names what is fused, in the order of the output, with each part's width.

    A plain layer has one part with the empty name.
    """

    in_features: int
    parts: Mapping[str, int]
    has_bias: bool = False

    @classmethod
    def plain(cls, in_features: int, out_features: int, *, has_bias: bool = False) -> LinearShape:
        return cls(in_features, {"": out_features}, has_bias)

    @property
    def out_features(self) -> int:
        return sum(self.parts.values())


class Linear(nn.Module):
    """y = x W^T + b with the weight kept in the dtype it is computed in."""

    def __init__(self, shape: LinearShape, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = shape
        weight = torch.empty(shape.out_features, shape.in_features, dtype=dtype, device=device)
        bias = torch.empty(shape.out_features, dtype=dtype, device=device) if shape.has_bias else None
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:  # [..., in_features] -> [..., out_features]
        return F.linear(x, self.weight, self.bias)

    def load_rows(self, start: int, rows: Tensor) -> None:
        """Put rows [start, start + len(rows)) of the weight into place."""  # rows: [n, in_features]
        self.weight[start : start + len(rows)].copy_(rows)

    def load_bias(self, start: int, values: Tensor) -> None:
        """Put outputs [start, start + len(values)) of the bias into place."""
        assert self.bias is not None
        self.bias[start : start + len(values)].copy_(values)
