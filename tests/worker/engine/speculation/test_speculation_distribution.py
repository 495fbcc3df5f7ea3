"""Tests that drafts, whether accepted or rejected, do not change the distribution of sampled tokens."""

from __future__ import annotations

import numpy as np
import pytest
from llava_worker.engine.speculation.drafter import Drafter
from numpy.typing import NDArray

from tests.worker.checkpoints import Prompt, Reference, random_prompt, reference_logits
from tests.worker.engine.drafters import ScriptedDrafter
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run

# The 1 - 1e-6 quantile of the chi-square distribution with 7 degrees of freedom. Draws are deterministic, so
# the tests are not flaky.
CHI_SQUARE_LIMIT = 40.5
TOKENS = list(range(40, 48))  # no other tokens can be sampled
NUM_OUTPUTS = 3_000
TEMPERATURE = 6.0


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return random_prompt(np.random.default_rng(31), num_images=1)


def probabilities(reference: Reference, prompt: Prompt, output_ids: list[int]) -> NDArray[np.float64]:
    """Return the probabilities of TOKENS after ``output_ids``, computed with transformers."""
    whole = Prompt([*prompt.token_ids, *output_ids], prompt.image_starts, prompt.pixels)
    return (reference_logits(reference, whole)[-1, TOKENS].double() / TEMPERATURE).softmax(-1).numpy()


def chi_square(tokens: list[int], expected: NDArray[np.float64]) -> float:
    counts = np.array([tokens.count(token_id) for token_id in TOKENS])
    expected = expected * len(tokens)
    assert counts.sum() == len(tokens) and expected.min() > 5
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def drafts(reference: Reference, prompt: Prompt) -> list[int]:
    """The most likely tokens, used as drafts so that many of them are accepted.

    The first one is never drafted.
    """
    output_ids: list[int] = []
    for _ in range(3):
        output_ids.append(TOKENS[int(np.argmax(probabilities(reference, prompt, output_ids)))])
    return output_ids


def outputs_with(
    drafter: Drafter, make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> list[list[int]]:
    engine = make_engine(
        drafter=drafter, eos_ids=frozenset(), num_blocks=400, max_num_sequences=32, max_batch_tokens=512
    )
    only = tuple((token_id, 100.0) for token_id in TOKENS)
    sequences = [
        make_sequence(
            prompt, seq_id=str(seed), max_new_tokens=3, temperature=TEMPERATURE, seed=seed, logit_bias=only
        )
        for seed in range(NUM_OUTPUTS)
    ]
    return list(run(engine, sequences).values())


@pytest.fixture(scope="module")
def drafter(drafts: list[int]) -> ScriptedDrafter:
    return ScriptedDrafter({str(seed): drafts for seed in range(NUM_OUTPUTS)})


@pytest.fixture(scope="module")
def outputs(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt, drafter: ScriptedDrafter
) -> list[list[int]]:
    return outputs_with(drafter, make_engine, make_sequence, run, prompt)


def test_tokens_sampled_with_a_draft_follow_the_distribution(
    reference: Reference,
    prompt: Prompt,
    drafts: list[int],
    outputs: list[list[int]],
    drafter: ScriptedDrafter,
) -> None:
    """The draft that follows the first token is the same in all outputs."""
    accepted = [accepted for _, accepted in drafter.acceptances]
    assert 100 < sum(accepted) < len(accepted) - 100

    seconds = [second for first, second, _ in outputs if first == drafts[0]]
    expected = probabilities(reference, prompt, drafts[:1])
    assert chi_square(seconds, expected) < CHI_SQUARE_LIMIT


def test_tokens_after_an_accepted_draft_follow_the_distribution(
    reference: Reference, prompt: Prompt, drafts: list[int], outputs: list[list[int]]
) -> None:
    thirds = [third for first, second, third in outputs if [first, second] == drafts[:2]]
    expected = probabilities(reference, prompt, drafts[:2])

    assert chi_square(thirds, expected) < CHI_SQUARE_LIMIT


def test_drafts_accepted_without_verification_are_detected(
    reference: Reference, prompt: Prompt, drafts: list[int], outputs: list[list[int]]
) -> None:
    seconds = [second for first, second, _ in outputs if first == drafts[0]]
    part = len(seconds) // 5
    expected = probabilities(reference, prompt, drafts[:1])

    assert chi_square([drafts[1]] * part + seconds[part:], expected) > CHI_SQUARE_LIMIT
