"""Tests that sampled tokens follow the distribution and depend on nothing but logits, seed and position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine.sampling.sampler import SamplingRow, sample, uniform
from numpy.typing import NDArray

from tests.worker.sampling_params import greedy

# The 1 - 1e-6 quantile of the chi-square distribution with 7 degrees of freedom. Draws are deterministic, so
# the tests are not flaky.
CHI_SQUARE_LIMIT = 40.5
NUM_DRAWS = 20_000

LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.3, -1.2, 0.9, 1.7, -3.0])


def frequencies(sampling: SamplingParams, logits: torch.Tensor = LOGITS) -> NDArray[Any]:
    draws = [SamplingRow(sampling, position) for position in range(NUM_DRAWS)]
    token_ids = sample(logits.expand(NUM_DRAWS, -1).clone(), draws)
    return np.bincount(token_ids.numpy(), minlength=len(logits))


def chi_square(counts: NDArray[Any], probabilities: torch.Tensor) -> float:
    expected = probabilities.double().numpy() * NUM_DRAWS
    return float(((counts - expected) ** 2 / expected).sum())


def test_temperature_zero_samples_the_most_likely_token() -> None:
    assert frequencies(greedy(temperature=0.0))[2] == NUM_DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 + 11])
def test_draws_follow_the_distribution(temperature: float, seed: int) -> None:
    counts = frequencies(greedy(temperature=temperature, seed=seed))

    assert chi_square(counts, (LOGITS / temperature).softmax(-1)) < CHI_SQUARE_LIMIT


def test_a_different_distribution_is_detected() -> None:
    counts = frequencies(greedy(temperature=1.0))

    assert chi_square(counts, (LOGITS / 1.1).softmax(-1)) > CHI_SQUARE_LIMIT


def test_draws_with_different_seeds_follow_the_distribution() -> None:
    draws = [SamplingRow(greedy(temperature=1.0, seed=seed), 3) for seed in range(NUM_DRAWS)]
    token_ids = sample(LOGITS.expand(NUM_DRAWS, -1).clone(), draws)

    counts = np.bincount(token_ids.numpy(), minlength=len(LOGITS))
    assert chi_square(counts, LOGITS.softmax(-1)) < CHI_SQUARE_LIMIT


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    probabilities = LOGITS.softmax(-1)  # the sum is 0.64 for tokens 2 and 6, and 0.78 with token 0
    counts = frequencies(greedy(temperature=1.0, top_p=0.7))

    kept = [0, 2, 6]
    assert counts[kept].sum() == NUM_DRAWS
    expected = probabilities[kept] / probabilities[kept].sum()
    assert chi_square(counts[kept], expected) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.3])
def test_top_p_keeps_at_least_the_most_likely_token(top_p: float) -> None:
    assert frequencies(greedy(temperature=1.0, top_p=top_p))[2] == NUM_DRAWS


def test_a_row_is_sampled_independently_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 50, generator=generator) * 3
    draws = [
        SamplingRow(greedy(temperature=row % 3 * 0.6, top_p=(1.0, 0.8)[row % 2], seed=row), position=row * 7)
        for row in range(64)
    ]

    together = sample(logits.clone(), draws)

    alone = [int(sample(logits[row : row + 1].clone(), [draws[row]])) for row in range(64)]
    assert together.tolist() == alone


@pytest.mark.parametrize("temperature", [1e-30, 1e-5, 1e9])
def test_extreme_temperatures_cause_no_nan(temperature: float) -> None:
    counts = frequencies(greedy(temperature=temperature))

    assert counts.sum() == NUM_DRAWS
    assert (counts[2] == NUM_DRAWS) == (temperature < 1)


def test_tokens_with_zero_probability_are_never_sampled() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])

    assert frequencies(greedy(temperature=1.0), logits)[[0, 2, 4]].sum() == 0


def test_uniform_numbers_are_in_range_and_all_different() -> None:
    numbers = uniform([seed for seed in range(100) for _ in range(100)], list(range(100)) * 100)

    assert numbers.min() >= 0 and numbers.max() < 1
    assert len(np.unique(numbers)) == 10_000
