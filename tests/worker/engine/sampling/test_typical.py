"""Locally typical sampling keeps the same tokens as transformers."""

from __future__ import annotations

import pytest
import torch
from llava_worker.engine.sampling.top_k_top_p import truncate
from transformers import TypicalLogitsWarper

from tests.worker.sampling_params import greedy

MASSES = [0.05, 0.2, 0.5, 0.9, 0.99]


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_the_same_tokens_are_kept_as_in_transformers(spread: float) -> None:
    logits = torch.randn(len(MASSES), 3000, generator=torch.Generator().manual_seed(1)).double() * spread
    probabilities = logits.softmax(-1)
    samplings = [greedy(typical_p=mass) for mass in MASSES]
    together = truncate(probabilities.clone(), samplings)
    no_ids = torch.empty(1, 0, dtype=torch.long)
    for row, mass in enumerate(MASSES):
        warped = TypicalLogitsWarper(mass)(no_ids, logits[row : row + 1].clone())
        kept = warped[0].isfinite()
        assert torch.equal(together[row] > 0, kept)
        assert torch.equal(together[row][kept], probabilities[row][kept])
        assert torch.equal(truncate(probabilities[row : row + 1], [samplings[row]])[0], together[row])


def test_it_applies_to_the_tokens_that_top_k_keeps() -> None:
    probabilities = torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]]).double()
    kept = truncate(probabilities, [greedy(top_k=3, typical_p=0.3)])
    # The entropy of (5/9, 2/9, 2/9) is 0.995. The surprisals are 0.588, 1.504 and 1.504.
    assert (kept > 0).tolist() == [[True, False, False, False, False]]


def test_a_neutral_value_changes_nothing() -> None:
    probabilities = torch.rand(2, 9).double()
    assert truncate(probabilities, [greedy(), greedy(typical_p=1.0)]) is probabilities
