"""The interface of linear layers, and the implementation that stores the weight in the compute dtype.

Weights consist of one row per output and are loaded a few rows at a time. This makes it possible to load the
parts of a fused projection separately and to quantize rows while they are loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from llava_worker.model.kernels.interface import Kernels

__all__ = [
    "UNSHARDED",
    "DenseLinear",
    "HasParameters",
    "Linear",
    "LinearShape",
    "Shard",
    "empty_bias",
    "num_multiplications",
]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``num`` shards of equal size along one dimension of a matrix in a checkpoint."""

    index: int = 0
    num: int = 1

    def first(self, width: int) -> int:
        """Return the index in the matrix at which this shard starts. ``width`` is the size of a shard."""
        return self.index * width


UNSHARDED = Shard()


@dataclass(frozen=True, slots=True)
class LinearShape:
    """The shape of a linear layer.

    ``parts`` maps the names of fused projections, in the order of their outputs, to their widths. A layer
    without fused projections has one part, whose name is empty. All sizes are those of a shard: the matrix in
    the checkpoint has ``rows.num`` times as many outputs and ``columns.num`` times as many inputs.
    """

    in_features: int
    parts: Mapping[str, int]
    has_bias: bool = False
    rows: Shard = UNSHARDED
    columns: Shard = UNSHARDED

    @classmethod
    def plain(
        cls, in_features: int, out_features: int, *, has_bias: bool = False, columns: Shard = UNSHARDED
    ) -> LinearShape:
        return cls(in_features, {"": out_features}, has_bias, columns=columns)

    @property
    def out_features(self) -> int:
        return sum(self.parts.values())


@runtime_checkable
class HasParameters(Protocol):
    """A module that keeps references to the data of its parameters."""

    def use_parameters(self) -> None:
        """Called after the data of the parameters has been replaced."""


class Linear(nn.Module, ABC):
    """A linear layer, y = x W^T + b. W is loaded a few rows at a time."""

    bias: nn.Parameter | None

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def __call__(self, x: Any) -> Tensor:
        """Return [..., out_features] for x [..., in_features], which W8A8 layers also accept quantized."""

    @property
    def packing(self) -> str:
        """Identifies the code that converts rows to the stored format, unless it is in this package."""
        return ""

    @abstractmethod
    def load_rows(self, start: int, rows: Tensor) -> None:
        """Store ``rows`` [n, in_features] as rows [start, start + n) of W."""

    def load_bias(self, start: int, values: Tensor) -> None:
        """Store ``values`` [n] as elements [start, start + n) of the bias."""
        assert self.bias is not None
        self.bias[start : start + len(values)].copy_(values)


def empty_bias(shape: LinearShape, dtype: torch.dtype, device: torch.device) -> nn.Parameter | None:
    """Return an uninitialized bias, or None if the layer has no bias."""
    if not shape.has_bias:
        return None
    return nn.Parameter(torch.empty(shape.out_features, dtype=dtype, device=device), requires_grad=False)


class DenseLinear(Linear):
    """A linear layer that stores its weight in the compute dtype."""

    def __init__(
        self, shape: LinearShape, *, kernels: Kernels, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape)
        weight = torch.empty(shape.out_features, shape.in_features, dtype=dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = empty_bias(shape, dtype, device)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.linear(x, self.weight, self.bias)

    def load_rows(self, start: int, rows: Tensor) -> None:
        self.weight[start : start + len(rows)].copy_(rows)


def num_multiplications(module: nn.Module) -> int:
    """Return the number of multiplications per token in all linear layers of the module."""
    shapes = [layer.shape for layer in module.modules() if isinstance(layer, Linear)]
    return sum(shape.in_features * shape.out_features for shape in shapes)
