"""Activation functions, keyed by their names in config.json."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.w8a8 import QuantizedRows, W8A8Format

__all__ = ["activation", "gated_activation"]

_Function = Callable[[Tensor], Tensor]


def activation(name: str, kernels: Kernels) -> _Function:
    """Return the activation function with this name, which was validated when config.json was read."""
    return kernels.quick_gelu if name == "quick_gelu" else _BY_NAME[name]


def gated_activation(
    name: str, kernels: Kernels, w8a8: W8A8Format | None = None
) -> Callable[[Tensor], Tensor | QuantizedRows]:
    """Return a function that computes activation(left half) * right half: [..., 2 * size] -> [..., size].

    If ``w8a8`` is set and a kernel is available, the output is quantized to this format.
    """
    if name == "silu" and w8a8 is not None:
        return lambda x: kernels.silu_and_mul_w8a8(x, w8a8)
    if name == "silu":
        return kernels.silu_and_mul
    function = activation(name, kernels)

    def gated(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return function(gate) * up

    return gated


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_BY_NAME: dict[str, _Function] = {
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "silu": F.silu,
    "relu": F.relu,
}
