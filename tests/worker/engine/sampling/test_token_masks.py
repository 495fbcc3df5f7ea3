"""``allowed_token_ids`` and ``bad_words`` exclude the same tokens as transformers' logits processors.

The output is the same alone, in a batch, after another worker's tokens, with drafts and with async
scheduling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_worker.engine import Sequence, SequenceRejected
from llava_worker.engine.sampling.bad_words import BadWords
from llava_worker.engine.sampling.logits_processor import LogitsProcessorState
from llava_worker.engine.sampling.sampler import SamplingRow, process, sample
from transformers import NoBadWordsLogitsProcessor, SuppressTokensLogitsProcessor

from tests.worker.checkpoints import IMAGE_TOKEN, Prompt, Reference, random_prompt, reference_output
from tests.worker.engine.drafters import EagerDrafter, ScriptedDrafter
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.outputs import collect_outputs
from tests.worker.sampling_params import greedy

LENGTH = 16
VOCAB = 60
ALLOWED = tuple(range(10, 40))
Words = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(5)
    return [random_prompt(rng, num_images=index % 2) for index in range(4)]


@pytest.fixture(scope="module")
def plain(make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]) -> list[int]:
    """The output of the first prompt without masks."""
    return run(make_engine(eos_ids=frozenset()), [make_sequence(prompts[0], max_new_tokens=LENGTH)])["one"]


def words_of(output: list[int]) -> Words:
    """Return bad words that occur in this output: one token and two sequences of tokens."""
    return ((output[9],), tuple(output[2:4]), tuple(output[5:8]))


def masked(make_sequence: MakeSequence, prompt: Prompt, words: Words, **options: Any) -> Sequence:
    sequence = make_sequence(prompt, **{"max_new_tokens": LENGTH} | options)
    sequence.bad_words = words
    return sequence


def occurs(word: tuple[int, ...], output: list[int]) -> bool:
    return any(tuple(output[start : start + len(word)]) == word for start in range(len(output)))


def test_greedy_output_equals_that_of_transformers_with_the_same_bad_words(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    reference: Reference,
    prompts: list[Prompt],
    plain: list[int],
) -> None:
    words = words_of(plain)
    sequence = masked(make_sequence, prompts[0], words)
    output = run(make_engine(eos_ids=frozenset()), [sequence])["one"]
    expected = reference_output(
        reference, prompts[0], LENGTH, bad_words_ids=[list(word) for word in words], eos_token_id=None
    )
    assert output == expected
    assert all(occurs(word, plain) and not occurs(word, output) for word in words)


def test_greedy_output_equals_that_of_transformers_with_the_other_tokens_suppressed(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    reference: Reference,
    prompts: list[Prompt],
) -> None:
    suppressed = [token_id for token_id in range(IMAGE_TOKEN + 1) if token_id not in ALLOWED]
    sequences = [
        make_sequence(prompt, seq_id=str(i), max_new_tokens=LENGTH, allowed_token_ids=ALLOWED)
        for i, prompt in enumerate(prompts)
    ]
    outputs = run(make_engine(num_blocks=128), sequences)
    for index, prompt in enumerate(prompts):
        expected = reference_output(reference, prompt, LENGTH, suppress_tokens=suppressed)
        assert outputs[str(index)] == expected
        assert set(expected) <= set(ALLOWED)


@pytest.mark.parametrize("seed", range(20))
def test_masked_logits_equal_those_of_transformers_processors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    output = rng.integers(0, 4, 12).tolist()  # few tokens, so that many bad words are nearly complete
    words = tuple(tuple(rng.integers(0, 4, rng.integers(1, 4)).tolist()) for _ in range(5))
    allowed = tuple(rng.permutation(VOCAB)[:30].tolist())
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))
    sampling = greedy(allowed_token_ids=allowed)
    state = LogitsProcessorState(sampling, [1, 2, 3], (), words)
    state.update(output)
    found = logits.clone()
    process(found, [SamplingRow(sampling, len(output), state)])

    ids = torch.tensor([output])
    suppressed = [token_id for token_id in range(VOCAB) if token_id not in allowed]
    expected = NoBadWordsLogitsProcessor([list(word) for word in words])(ids, logits.clone())
    expected = SuppressTokensLogitsProcessor(suppressed)(ids, expected)
    assert torch.equal(found, expected)


def test_a_bad_word_is_completed_only_by_its_last_token() -> None:
    words = BadWords([(7,), (1, 2), (3, 1, 4)])
    assert words.last_ids([]).tolist() == [7]
    assert words.last_ids([1]).tolist() == [7, 2]
    assert words.last_ids([3, 1]).tolist() == [7, 2, 4]
    assert words.last_ids([1, 3]).tolist() == [7]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", ["perfect drafts", "wrong drafts", "eager drafts", "async"])
def test_output_does_not_depend_on_batches_drafts_or_async_scheduling(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
    plain: list[int],
    temperature: float,
    name: str,
) -> None:
    words = words_of(plain)
    cases: list[tuple[Words, dict[str, Any]]] = [
        (words, {}),
        (words[:1], {}),  # only single tokens, so drafts are allowed
        ((), {"allowed_token_ids": ALLOWED}),
        (words, {"allowed_token_ids": (*ALLOWED, *plain), "repetition_penalty": 1.1}),
    ]

    def sequences() -> list[Sequence]:
        return [
            masked(make_sequence, prompts[0], own, seq_id=str(i), temperature=temperature, seed=i, **options)
            for i, (own, options) in enumerate(cases)
        ]

    alone = {
        sequence.seq_id: run(make_engine(eos_ids=frozenset()), [sequence])[sequence.seq_id]
        for sequence in sequences()
    }
    by_name: dict[str, dict[str, Any]] = {
        "perfect drafts": {"drafter": ScriptedDrafter(alone)},
        "wrong drafts": {"drafter": ScriptedDrafter(alone, wrong_every=2)},
        "eager drafts": {"drafter": EagerDrafter()},
        "async": {"is_async": True},
    }
    engine = make_engine(eos_ids=frozenset(), num_blocks=128, max_batch_tokens=64, **by_name[name])
    assert run(engine, sequences()) == alone
    if name == "perfect drafts":
        assert engine.stats().num_accepted_tokens_total > 0


@pytest.mark.parametrize("cut", [1, 3, 6, 12])
def test_a_resumed_sequence_excludes_words_that_another_worker_began(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
    plain: list[int],
    cut: int,
) -> None:
    words = words_of(plain)
    options = {"allowed_token_ids": (*ALLOWED, *plain), "temperature": 0.8}
    engine = make_engine(eos_ids=frozenset())
    whole = run(engine, [masked(make_sequence, prompts[0], words, **options)])["one"]
    resumed = masked(make_sequence, prompts[0], words, output_ids=whole[:cut], **options)
    assert run(make_engine(eos_ids=frozenset()), [resumed])["one"] == whole


def test_only_the_sequence_without_any_possible_token_fails(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    blocked = masked(make_sequence, prompts[0], ((20, 21),), seq_id="blocked", allowed_token_ids=(21, 20))
    blocked.bad_words = ((21,), (20, 20))
    other = make_sequence(prompts[1], seq_id="other", max_new_tokens=4)
    outputs = collect_outputs(make_engine(eos_ids=frozenset()), blocked, other)
    assert [output.token_id for output in outputs["blocked"]] == [20, None]
    error = outputs["blocked"][-1].error
    assert error is not None and error.code is ErrorCode.INVALID_REQUEST
    assert "after 1 output tokens" in error.message
    assert len(outputs["other"]) == 4 and outputs["other"][-1].error is None


def test_min_tokens_with_only_end_tokens_allowed_is_an_error(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    (output,) = collect_outputs(
        make_engine(), make_sequence(prompts[0], allowed_token_ids=(2,), min_tokens=3)
    )["one"]
    assert output.error is not None and "min_tokens" in output.error.message


@pytest.mark.parametrize("token_id", [-1, IMAGE_TOKEN + 1])
def test_tokens_outside_the_vocabulary_are_rejected(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt], token_id: int
) -> None:
    with pytest.raises(SequenceRejected, match="allowed_token_ids"):
        make_engine().add(make_sequence(prompts[0], allowed_token_ids=(5, token_id)))
    with pytest.raises(SequenceRejected, match="bad_words"):
        make_engine().add(masked(make_sequence, prompts[0], ((5, token_id),)))


def test_sequences_without_masks_have_no_state_and_are_not_checked() -> None:
    assert LogitsProcessorState.create(greedy(), [1], frozenset({2})) is None
    logits = torch.zeros(2, VOCAB)
    biased = greedy(logit_bias=((4, 1.0),))
    state = LogitsProcessorState.create(biased, [1], frozenset({2}))
    rows = [SamplingRow(greedy(), 0), SamplingRow(biased, 0, state)]
    assert process(logits, rows) is None
    assert sample(logits, rows).tolist() == [0, 4]
