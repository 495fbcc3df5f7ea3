"""Tests that compare the truncation of peaked and flat distributions with a simple reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine.sampling.top_k_top_p import truncate

from tests.worker.sampling_params import greedy

VOCAB = 3000  # more than the number of tokens that are examined first
CASES: list[dict[str, Any]] = [
    {},
    {"top_k": 7},
    {"top_k": 1024},
    {"top_k": 1025},
    {"top_k": 2000, "top_p": 0.5},
    {"top_k": 2000, "top_p": 0.99},
    {"top_k": 5000},
    {"top_k": 5000, "top_p": 0.9},
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.999999},
    {"top_p": 0.9, "min_p": 0.01},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.001},
]


def reference(probabilities: torch.Tensor, s: SamplingParams) -> torch.Tensor:
    kept = probabilities.clone()
    kept[kept < s.min_p * kept.max()] = 0
    order = kept.argsort(descending=True, stable=True).tolist()
    if s.top_k:
        kept[order[s.top_k :]] = 0
    limit, mass = s.top_p * float(kept.sum()), 0.0
    for rank, token_id in enumerate(order):
        if rank and s.top_p < 1 and mass >= limit:
            kept[token_id] = 0
        mass += float(probabilities[token_id])
    return kept


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_truncation_equals_the_reference(spread: float) -> None:
    logits = torch.randn(len(CASES), VOCAB, generator=torch.Generator().manual_seed(3)) * spread
    probabilities = logits.double().softmax(-1)
    samplings = [greedy(**case) for case in CASES]

    together = truncate(probabilities.clone(), samplings)

    for row, sampling in enumerate(samplings):
        expected = reference(probabilities[row], sampling)
        assert torch.equal(together[row], expected), CASES[row]
        assert torch.equal(truncate(probabilities[row : row + 1], [sampling])[0], expected)


def test_ties_with_the_last_token_are_kept() -> None:
    probabilities = torch.tensor([[0.1, 0.3, 0.3, 0.3]]).double()

    assert (truncate(probabilities, [greedy(top_k=1)]) > 0).tolist() == [[False, True, True, True]]
