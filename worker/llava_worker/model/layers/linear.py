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

from llava_worker.model.kernels.interface import Kernels

__all__ = ["WHOLE", "DenseLinear", "Linear", "LinearShape", "Portion"]


@dataclass(frozen=True, slots=True)
class Portion:
    """The one of ``num`` equal portions, along one side of a stored matrix, that is kept here."""

    index: int = 0
    num: int = 1

    def first(self, width: int) -> int:
        """Where it begins in the stored matrix; ``width`` is the portion's own."""
        return self.index * width


WHOLE = Portion()


@dataclass(frozen=True, slots=True)
class LinearShape:
    """``parts`` names what is fused, in the order of the output, with each part's width.

    A plain layer has one part with the empty name. Widths are of what is kept: a file that holds the whole
    of each part has ``rows.num`` times the outputs and ``columns.num`` times the inputs.
    """

    in_features: int
    parts: Mapping[str, int]
    has_bias: bool = False
    rows: Portion = WHOLE
    columns: Portion = WHOLE

    @classmethod
    def plain(
        cls, in_features: int, out_features: int, *, has_bias: bool = False, columns: Portion = WHOLE
    ) -> LinearShape:
        return cls(in_features, {"": out_features}, has_bias, columns=columns)

    @property
    def out_features(self) -> int:
        return sum(self.parts.values())


class Linear(nn.Module, ABC):
    """y = x W^T + b, filled a few rows at a time."""

    bias: nn.Parameter | None

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:  # [..., in_features] -> [..., out_features]
        ...

    @abstractmethod
    def load_rows(self, start: int, rows: Tensor) -> None:
        """Put rows [start, start + len(rows)) of the weight into place."""  # rows: [n, in_features]

    def load_bias(self, start: int, values: Tensor) -> None:
        """Put outputs [start, start + len(values)) of the bias into place."""
        assert self.bias is not None
        self.bias[start : start + len(values)].copy_(values)


def empty_bias(shape: LinearShape, dtype: torch.dtype, device: torch.device) -> nn.Parameter | None:
    """To be filled; None for a layer without."""
    if not shape.has_bias:
        return None
    return nn.Parameter(torch.empty(shape.out_features, dtype=dtype, device=device), requires_grad=False)


class DenseLinear(Linear):
    """The weight is kept in the dtype it is computed in."""

    def __init__(
        self, shape: LinearShape, *, kernels: Kernels, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape)
        weight = torch.empty(shape.out_features, shape.in_features, dtype=dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = empty_bias(shape, dtype, device)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.dense(x, self.weight, self.bias)

    def load_rows(self, start: int, rows: Tensor) -> None:
        self.weight[start : start + len(rows)].copy_(rows)
