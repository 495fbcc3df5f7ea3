"""Asserts that a layer's output does not depend on how its weight is split into chunks for loading."""

from __future__ import annotations

from collections.abc import Callable

import torch
from llava_worker.model.layers.linear import Linear
from torch import Tensor

__all__ = ["assert_independent_of_chunks"]


def assert_independent_of_chunks(
    make: Callable[[int], Linear], weight: Tensor, bias: Tensor, x: Tensor, *, chunk: int
) -> None:
    """Assert that loading a layer all at once and loading it ``chunk`` rows at a time give the same results.

    ``make`` creates a layer and loads ``weight`` into it; its argument is the number of rows to load at a
    time. The bias is loaded in two parts.
    """
    layers = [make(num_rows) for num_rows in (len(weight), chunk)]
    for layer in layers:
        layer.load_bias(0, bias[:80])
        layer.load_bias(80, bias[80:])

    whole, chunked = (layer(x) for layer in layers)

    assert torch.equal(whole, chunked)
    assert (whole - x @ weight.t() - bias).abs().max() < 0.1 * whole.abs().max()
