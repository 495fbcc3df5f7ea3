"""A check that a layer is the same for any chunks of rows that its weight is loaded in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from llava_worker.model.layers.linear import Linear
from torch import Tensor

__all__ = ["assert_independent_of_chunks"]


def assert_independent_of_chunks(
    make: Callable[[int], Linear], weight: Tensor, bias: Tensor, x: Tensor, *, chunk: int
) -> None:
    """``make`` loads ``weight`` that many rows at a time into a layer; the bias is loaded in two parts."""
    layers = [make(num_rows) for num_rows in (len(weight), chunk)]
    for layer in layers:
        layer.load_bias(0, bias[:80])
        layer.load_bias(80, bias[80:])

    whole, chunked = (layer(x) for layer in layers)

    assert torch.equal(whole, chunked)
    assert (whole - x @ weight.t() - bias).abs().max() < 0.1 * whole.abs().max()
