"""Layers that are filled a few rows at a time, as a checkpoint is read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from llava_worker.model.layers.linear import Linear
from torch import Tensor

__all__ = ["assert_same_in_pieces"]


def assert_same_in_pieces(
    make: Callable[[int], Linear], weight: Tensor, bias: Tensor, x: Tensor, *, piece: int
) -> None:
    """``make`` fills a layer with ``weight``, so many rows at a time; the bias comes in two parts."""
    layers = [make(num_rows) for num_rows in (len(weight), piece)]
    for layer in layers:
        layer.load_bias(0, bias[:80])
        layer.load_bias(80, bias[80:])

    whole, pieces = (layer(x) for layer in layers)

    assert torch.equal(whole, pieces)
    assert (whole - x @ weight.t() - bias).abs().max() < 0.1 * whole.abs().max()
