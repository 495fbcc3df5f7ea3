"""The codebooks minimize the error of weights that follow Student's t-distribution."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.kernels.codebook import CODEBOOKS
from llava_worker.model.kernels.interface import WEIGHT_GROUP
from torch import Tensor

DEGREES_OF_FREEDOM, NUM_GROUPS, NUM_ITERATIONS = 5, 20_000, 3000


def random_groups() -> Tensor:
    """Return random weights, scaled so that the largest magnitude in each group becomes -1."""
    noise = torch.Generator().manual_seed(0)
    shape = (NUM_GROUPS, WEIGHT_GROUP)
    chi_squared = torch.randn(DEGREES_OF_FREEDOM, *shape, generator=noise).square().sum(0)
    x = torch.randn(shape, generator=noise) / (chi_squared / DEGREES_OF_FREEDOM).sqrt()
    return (x / -x.gather(1, x.abs().argmax(1, keepdim=True))).flatten()


def best_codebook(weights: Tensor, num: int) -> Tensor:
    """Return the values, in units of 1/127, that minimize the mean absolute error. The first value is -127.

    This is Lloyd's algorithm with medians: it assigns each weight to the nearest value, and then replaces
    each value with the median of its weights.
    """
    weights = weights[weights > -1].sort().values
    values = torch.quantile(weights[::64], (torch.arange(num) + 0.5) / num)
    for _ in range(NUM_ITERATIONS):
        values[0] = -1
        edges = torch.searchsorted(weights, (values[1:] + values[:-1]) / 2)
        edges = torch.cat([torch.tensor([0]), edges, torch.tensor([len(weights)])])
        values = weights[(edges[1:] + edges[:-1]) // 2]
    values[0] = -1
    return values * 127


def mean_error(weights: Tensor, values: Tensor) -> float:
    edges = (values[1:] + values[:-1]) / 2
    return float((values[torch.bucketize(127 * weights, edges)] - 127 * weights).abs().mean())


@pytest.mark.parametrize("bits", CODEBOOKS)
def test_a_codebook_minimizes_the_mean_absolute_error(bits: int) -> None:
    weights, codebook = random_groups(), torch.tensor(CODEBOOKS[bits]).float()

    assert (best_codebook(weights, 1 << bits) - codebook).abs().max() < 2

    evenly_spaced = torch.arange(-(1 << bits - 1), 1 << bits - 1) * (128 / (1 << bits - 1))
    assert mean_error(weights, codebook) < 0.95 * mean_error(weights, evenly_spaced)


@pytest.mark.parametrize("bits", CODEBOOKS)
def test_a_codebook_has_the_properties_that_the_kernels_require(bits: int) -> None:
    values = torch.tensor(CODEBOOKS[bits])

    assert len(values) == 1 << bits and bool((values.diff() > 0).all())
    assert values[0] == -127 == -values.abs().max()
    assert not (values == 0).any()
