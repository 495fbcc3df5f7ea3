"""The linear layer: the one place that knows how a matrix is stored.

Rows are what a weight is split into everywhere here: fused projections put their parts one below the other,
and each row can be quantised (`quantized`) when it arrives, before the next is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava_worker.model.kernels import Kernels

__all__ = ["DenseLinear", "Linear", "LinearShape"]


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


class Linear(nn.Module, ABC):
    """y = x W^T + b, filled a few rows at a time."""

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:  # [..., in_features] -> [..., out_features]
        ...

    @abstractmethod
    def load_rows(self, start: int, rows: Tensor) -> None:
        """Put rows [start, start + len(rows)) of the weight into place."""  # rows: [n, in_features]

    @abstractmethod
    def load_bias(self, start: int, values: Tensor) -> None:
        """Put outputs [start, start + len(values)) of the bias into place."""


class DenseLinear(Linear):
    """The weight is kept in the dtype it is computed in."""

    def __init__(
        self, shape: LinearShape, *, kernels: Kernels, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape)
        weight = torch.empty(shape.out_features, shape.in_features, dtype=dtype, device=device)
        bias = torch.empty(shape.out_features, dtype=dtype, device=device) if shape.has_bias else None
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.dense(x, self.weight, self.bias)

    def load_rows(self, start: int, rows: Tensor) -> None:
        self.weight[start : start + len(rows)].copy_(rows)

    def load_bias(self, start: int, values: Tensor) -> None:
        assert self.bias is not None
        self.bias[start : start + len(values)].copy_(values)
