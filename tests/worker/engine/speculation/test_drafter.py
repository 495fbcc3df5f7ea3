"""Tests of the drafter: which tokens are drafted, when drafting pauses, and which drafts are accepted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.sampling.sampled_tokens import count_accepted
from llava_worker.engine.speculation.cost_model import StepCost
from llava_worker.engine.speculation.drafter import MAX_DRAFTS, PromptLookupDrafter
from llava_worker.engine.speculation.ngram_index import NgramIndex
from llava_worker.engine.speculation.speculative_decoding import is_draftable

from tests.worker.sampling_params import greedy


def sequence_of(
    prompt: list[int], output_ids: list[int] | None = None, *images: ImageSpan, **sampling: Any
) -> Sequence:
    return Sequence(
        seq_id="one",
        prompt_ids=list(prompt),
        output_ids=output_ids or [],
        max_new_tokens=10_000,
        images=list(images),
        sampling=greedy(**sampling),
    )


def propose(
    prompt: list[int], output_ids: list[int] | None = None, *images: ImageSpan, max_tokens: int = 4
) -> list[int]:
    return NgramIndex(sequence_of(prompt, output_ids, *images)).propose(output_ids or [], max_tokens)


def test_tokens_that_followed_the_last_two_earlier_are_drafted() -> None:
    assert propose([1, 5, 6, 7, 8, 9, 3, 5, 6]) == [7, 8, 9, 3]


def test_no_more_tokens_are_drafted_than_requested() -> None:
    assert propose([1, 5, 6, 7, 8, 9, 3, 5, 6], max_tokens=2) == [7, 8]


@pytest.mark.parametrize("prompt", [[], [1], [1, 2], [1, 2, 3, 4, 5, 2, 6], [4, 4]])
def test_tokens_that_did_not_occur_together_give_no_drafts(prompt: list[int]) -> None:
    assert propose(prompt) == []


def test_a_match_of_three_tokens_takes_precedence_over_two() -> None:
    assert propose([1, 2, 3, 10, 9, 2, 3, 20, 1, 2, 3], max_tokens=1) == [10]


def test_the_latest_of_equal_matches_is_used() -> None:
    assert propose([2, 3, 10, 2, 3, 20, 2, 3], max_tokens=1) == [20]


def test_drafts_beyond_the_end_repeat_themselves() -> None:
    assert propose([1, 7, 8, 7, 8], max_tokens=5) == [7, 8, 7, 8, 7]


def test_matches_can_span_prompt_and_output() -> None:
    assert propose([1, 5, 6, 7], [8, 5, 6], max_tokens=2) == [7, 8]


def test_image_tokens_are_neither_matched_nor_drafted() -> None:
    images = (ImageSpan(1, 4, "a"), ImageSpan(8, 4, "b"))
    prompt = [1, 9, 9, 9, 9, 5, 6, 7, 9, 9, 9, 9, 3]

    assert propose([*prompt, 5, 6], [], *images) == [7]
    assert propose([*prompt, 6, 7], [], *images) == []
    assert propose([*prompt, 4], [9, 9], *images) == []
    assert propose([*prompt, 4], [9, 9]) == [3, 4, 9, 9]  # the same tokens, but without image spans


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 60), st.integers(1, 8))
def test_incremental_lookup_equals_a_plain_search(token_ids: list[int], cut: int, max_tokens: int) -> None:
    sequence = sequence_of(token_ids[:cut])
    index = NgramIndex(sequence)
    for token_id in [None, *token_ids[cut:]]:
        if token_id is not None:
            sequence.output_ids.append(token_id)
        assert index.propose(sequence.output_ids, max_tokens) == plain_search(
            sequence.prompt_ids + sequence.output_ids, max_tokens
        )


def plain_search(token_ids: list[int], max_tokens: int) -> list[int]:
    for size in (3, 2):
        for start in range(len(token_ids) - size - 1, -1, -1):
            if token_ids[start : start + size] == token_ids[-size:]:
                for _ in range(max_tokens):
                    token_ids = [*token_ids, token_ids[start + size]]
                    start += 1
                return token_ids[-max_tokens:]
    return []


@pytest.mark.parametrize(
    ("drafts", "sampled", "count"),
    [
        ([], [5], 0),
        ([5, 6], [5, 6, 7], 2),
        ([5, 6], [5, 9, 7], 1),
        ([5, 6], [9, 6, 7], 0),
        ([5, 6], [None, 6, 7], 0),
        ([5, 6], [5, None, 7], 1),
    ],
)
def test_drafts_are_accepted_up_to_the_first_mismatch(
    drafts: list[int], sampled: list[int | None], count: int
) -> None:
    assert count_accepted(drafts, sampled) == count


@given(st.lists(st.integers(0, 2), max_size=8), st.integers(0, 1000))
def test_accepted_tokens_equal_tokens_sampled_one_by_one(drafts: list[int], seed: int) -> None:
    def sample(before: list[int]) -> int:
        return hash((seed, *before)) % 3

    sampled = [sample(drafts[:index]) for index in range(len(drafts) + 1)]
    kept = sampled[: count_accepted(drafts, sampled) + 1]

    plain: list[int] = []
    while len(plain) < len(kept):
        plain.append(sample(plain))
    assert kept == plain


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, True),
        ({"temperature": 1.0, "top_k": 5}, True),
        ({"min_tokens": 3}, True),
        ({"logit_bias": ((5, 1.0),)}, True),
        ({"repetition_penalty": 1.1}, False),
        ({"frequency_penalty": 0.5}, False),
    ],
)
def test_only_penalties_prevent_drafting(sampling: dict[str, Any], expected: bool) -> None:
    sequence = sequence_of([1, 2, 3], **sampling)

    assert is_draftable(sequence) is expected


REPEATING = [1, *range(10, 20)] * 3


def num_drafts(drafter: PromptLookupDrafter, sequence: Sequence, *, num_rows: int = 1) -> int:
    return len(drafter.propose(sequence, max_tokens=MAX_DRAFTS, num_rows=num_rows))


def record_steps(
    drafter: PromptLookupDrafter, *, base: float, each: float, sizes: range = range(1, 17)
) -> None:
    for size in [*sizes] * 4:
        drafter.record_step_time(size, base + each * size)


@pytest.mark.parametrize(
    ("base", "each", "num_rows", "expected"),
    [
        (1.0, 0.01, 1, MAX_DRAFTS),  # memory-bound: drafts are nearly free
        (1.0, 0.2, 1, 3),
        (0.0, 1.0, 1, 0),  # compute-bound
        (1.0, 0.02, 64, 0),  # drafts are cheap for one sequence, but 64 sequences fully utilize the machine
    ],
)
def test_the_number_of_drafts_depends_on_their_cost(
    base: float, each: float, num_rows: int, expected: int
) -> None:
    drafter = PromptLookupDrafter()
    record_steps(drafter, base=base, each=each)

    assert num_drafts(drafter, sequence_of(REPEATING), num_rows=num_rows) == pytest.approx(expected, abs=1)


def test_the_number_of_drafts_follows_the_acceptance_rate() -> None:
    drafter = PromptLookupDrafter()
    accepted, rejected = sequence_of(REPEATING), sequence_of(REPEATING)
    first = num_drafts(drafter, accepted), num_drafts(drafter, rejected)
    for _ in range(6):
        drafter.record_acceptance(accepted, num_drafted=4, num_accepted=4)
        drafter.record_acceptance(rejected, num_drafted=4, num_accepted=1)

    assert num_drafts(drafter, rejected) < first[1] <= first[0] < num_drafts(drafter, accepted)


def drafting_lengths(drafter: PromptLookupDrafter, *, is_right: bool, num_tokens: int = 400) -> list[int]:
    """Return the output lengths at which drafts are proposed.

    All drafts are accepted if ``is_right`` is true; otherwise, all are rejected.
    """
    sequence = sequence_of(REPEATING)
    lengths = []
    while len(sequence.output_ids) < num_tokens:
        drafts = drafter.propose(sequence, max_tokens=MAX_DRAFTS, num_rows=1)
        sequence.output_ids += REPEATING[:1]  # the content of the output is irrelevant
        sequence.output_ids += REPEATING[1:3]
        if drafts:
            lengths.append(len(sequence.output_ids))
            drafter.record_acceptance(
                sequence, num_drafted=len(drafts), num_accepted=len(drafts) if is_right else 0
            )
    return lengths


def test_consecutive_misses_double_the_pause() -> None:
    missing = drafting_lengths(PromptLookupDrafter(), is_right=False)
    pauses = [after - before for before, after in zip(missing, missing[1:], strict=False)]

    assert pauses == sorted(pauses) and 64 <= pauses[-1] < 64 + 6
    assert len(missing) < 15  # of 133 steps
    assert len(drafting_lengths(PromptLookupDrafter(), is_right=True)) > 130


def test_an_accepted_draft_ends_the_pauses() -> None:
    drafter, sequence = PromptLookupDrafter(), sequence_of(REPEATING)
    for _ in range(5):
        num_drafts(drafter, sequence)
        drafter.record_acceptance(sequence, num_drafted=1, num_accepted=0)
    assert num_drafts(drafter, sequence) == 0
    sequence.output_ids += REPEATING[:32]
    assert num_drafts(drafter, sequence) > 0

    drafter.record_acceptance(sequence, num_drafted=1, num_accepted=1)

    assert num_drafts(drafter, sequence) > 0


def test_the_price_of_a_token_is_estimated_despite_noise() -> None:
    cost = StepCost()
    for step in range(200):
        size = 1 + step % 9
        cost.add(size, 4.0 + 0.2 * size + (0.3 if step % 2 else -0.3) + (500.0 if step % 40 == 39 else 0.0))

    assert cost.price(1) == pytest.approx(0.2 / 4.2, abs=0.1)
    assert cost.price(200) > 0.7


@pytest.mark.parametrize("seconds", [[], [1.0] * 3, [1.0] * 500, [1.0, 2.0] * 50])
def test_steps_of_equal_size_give_no_price(seconds: list[float]) -> None:
    cost = StepCost()
    for each in seconds:
        cost.add(3, each)

    assert cost.price(3) == StepCost().price(3)


def test_an_outdated_price_decays() -> None:
    cost = StepCost()
    for size in [1, 9] * 5:
        cost.add(size, float(size))
    assert cost.price(1) == pytest.approx(1.0)

    for _ in range(700):
        cost.add(1, 1.0)

    assert cost.price(1) == StepCost().price(1)


def test_the_drafter_drops_the_state_of_a_deleted_sequence() -> None:
    drafter, sequence = PromptLookupDrafter(), sequence_of(REPEATING)
    assert num_drafts(drafter, sequence) > 0 and len(drafter._states) == 1

    del sequence

    assert len(drafter._states) == 0
