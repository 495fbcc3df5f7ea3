"""An assertion that a layer does not depend on the chunks in which its weight is loaded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from llava_worker.model.layers.linear import Linear
from torch import Tensor

__all__ = ["assert_independent_of_chunks"]


def assert_independent_of_chunks(
    make: Callable[[int], Linear], weight: Tensor, bias: Tensor, x: Tensor, *, chunk: int
) -> None:
    """Assert that a layer is the same whether it is loaded all at once or ``chunk`` rows at a time.

    ``make`` returns a layer after loading ``weight`` into it, the given number of rows at a time. The bias is
    loaded in two parts.
    """
    layers = [make(num_rows) for num_rows in (len(weight), chunk)]
    for layer in layers:
        layer.load_bias(0, bias[:80])
        layer.load_bias(80, bias[80:])

    whole, chunked = (layer(x) for layer in layers)

    assert torch.equal(whole, chunked)
    assert (whole - x @ weight.t() - bias).abs().max() < 0.1 * whole.abs().max()
