"""Grammars together with other sampling parameters and with other sequences of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_worker.engine import Sequence, SequenceRejected
from llava_worker.engine.sampling.grammar_bitmask import BitmaskBuilder
from llava_worker.engine.speculation.speculative_decoding import is_draftable
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.structured_output.grammar_kit import (
    EOS_ID,
    VOCAB_SIZE,
    Answer,
    Vocabulary,
    answers_of,
    make_model,
)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Llava:
    return make_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture
def ask(
    wide_model: Llava,
    grammars: GrammarCache,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
) -> Callable[..., Answer]:
    """One answer to an expression; ``options`` are fields of Sequence and SamplingParams."""

    def ask(pattern: str, *neighbours: Sequence, **options: Any) -> Answer:
        sequence = make_sequence(random_prompt(np.random.default_rng(3), num_images=1), **options)
        sequence.grammar = grammars.compile("regex", pattern)
        return answers_of(make_engine(over=wide_model), [sequence, *neighbours])["one"]

    return ask


def test_an_answer_ends_with_stop_when_its_grammar_is_complete(
    ask: Callable[..., Answer], vocabulary: Vocabulary
) -> None:
    answer = ask("ab", max_new_tokens=50)
    assert (vocabulary.text(answer.token_ids), answer.finish) == ("ab", "stop")
    assert answer.token_ids[-1] == EOS_ID


def test_an_answer_cut_at_its_longest_length_says_so(
    ask: Callable[..., Answer], vocabulary: Vocabulary
) -> None:
    answer = ask("[ab]{30}", max_new_tokens=9)
    assert (len(answer.token_ids), answer.finish) == (9, "length")
    assert set(vocabulary.text(answer.token_ids)) <= {"a", "b"}


def test_min_tokens_holds_the_end_back_while_something_else_may_come(
    ask: Callable[..., Answer], vocabulary: Vocabulary
) -> None:
    favour_end = ((EOS_ID, 100.0),)
    assert len(ask("[ab]{1,40}", logit_bias=favour_end, max_new_tokens=50).token_ids) <= 3
    held = ask("[ab]{1,40}", logit_bias=favour_end, min_tokens=12, max_new_tokens=50)
    assert (len(held.token_ids), held.finish) == (13, "stop")


def test_a_complete_answer_ends_although_min_tokens_asks_for_more(
    ask: Callable[..., Answer], vocabulary: Vocabulary
) -> None:
    answer = ask("ab", min_tokens=20, max_new_tokens=50)
    assert (vocabulary.text(answer.token_ids), answer.finish) == ("ab", "stop")


def test_logit_bias_chooses_among_what_is_allowed_only(
    ask: Callable[..., Answer], vocabulary: Vocabulary
) -> None:
    b, x = vocabulary.tokens.index(b"b"), vocabulary.tokens.index(b"x")
    answer = ask("a[ab]{5}", logit_bias=((b, 100.0), (x, 100.0)), max_new_tokens=50)
    assert vocabulary.text(answer.token_ids) == "abbbbb"


def test_penalties_and_truncation_choose_among_what_is_allowed_only(
    ask: Callable[..., Answer], vocabulary: Vocabulary
) -> None:
    answer = ask(
        "[abc]{12}",
        temperature=1.5,
        top_p=0.2,
        top_k=2,
        min_p=0.1,
        repetition_penalty=1.9,
        presence_penalty=2.0,
        frequency_penalty=2.0,
        max_new_tokens=50,
    )
    assert set(vocabulary.text(answer.token_ids)) <= set("abc")
    assert answer.finish == "stop"


def test_a_stop_token_ends_the_answer_in_mid_grammar(
    ask: Callable[..., Answer], vocabulary: Vocabulary
) -> None:
    stops = tuple(index for index, text in enumerate(vocabulary.tokens) if b"b" in text)[:16]
    answer = ask("a[b]{30}", stop_token_ids=stops, max_new_tokens=50)
    assert answer.finish == "stop"
    assert answer.token_ids[-1] in stops


def test_logprobs_are_the_models_own_before_the_grammar(ask: Callable[..., Answer]) -> None:
    answer = ask("[ab]{3}", num_logprobs=5, max_new_tokens=50)
    entries = [output.logprobs for output in answer.outputs if output.logprobs is not None]
    assert len(entries) == len(answer.outputs) and all(len(entry.top) == 5 for entry in entries)
    assert all(
        token_id not in dict(entry.top) or dict(entry.top)[token_id] == entry.logprob
        for token_id, entry in zip(answer.token_ids, entries, strict=True)
    )
    assert any(
        token_id not in dict(entry.top) for token_id, entry in zip(answer.token_ids, entries, strict=True)
    )


def test_going_on_past_the_end_does_not_go_with_a_grammar(ask: Callable[..., Answer]) -> None:
    with pytest.raises(SequenceRejected, match="ignore_eos"):
        ask("ab", ignore_eos=True)


def test_a_sequence_with_a_grammar_gets_no_drafts(
    grammars: GrammarCache, make_sequence: MakeSequence
) -> None:
    sequence = make_sequence(random_prompt(np.random.default_rng(0), num_images=0))
    assert is_draftable(sequence)
    sequence.grammar = grammars.compile("regex", "ab")
    assert not is_draftable(sequence)


def test_a_grammar_that_fails_in_mid_answer_ends_that_answer_alone(
    ask: Callable[..., Answer],
    wide_model: Llava,
    vocabulary: Vocabulary,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    grammars: GrammarCache,
) -> None:
    rng = np.random.default_rng(4)
    prompts = {name: random_prompt(rng, num_images=1) for name in ("free", "held")}

    def neighbours() -> list[Sequence]:
        made = [make_sequence(prompt, seq_id=name, temperature=1.0) for name, prompt in prompts.items()]
        made[1].grammar = grammars.compile("regex", "[abc]{9}")
        return made

    broken = make_sequence(random_prompt(rng, num_images=1), seq_id="broken", output_ids=vocabulary.ids(" x"))
    broken.grammar = grammars.compile("regex", "[ab]{9}")
    undisturbed = answers_of(make_engine(over=wide_model), neighbours())
    beside = answers_of(make_engine(over=wide_model), [*neighbours(), broken])
    assert beside["broken"].error is not None
    assert beside["broken"].error.code is ErrorCode.INVALID_REQUEST
    for name in prompts:
        assert beside[name].token_ids == undisturbed[name].token_ids
        assert beside[name].error is None


def test_a_bitmask_changes_only_the_rows_of_its_sequences(
    grammars: GrammarCache, vocabulary: Vocabulary, make_sequence: MakeSequence
) -> None:
    prompt = random_prompt(np.random.default_rng(0), num_images=0)
    free, held = make_sequence(prompt), make_sequence(prompt, output_ids=vocabulary.ids(" "))
    held.grammar = grammars.compile("regex", "[ab]{2}")
    logits = torch.zeros(3, VOCAB_SIZE)
    bitmask = BitmaskBuilder().start([free, held, free], VOCAB_SIZE)
    assert bitmask is not None and bitmask.apply(logits) == {}
    assert not logits[0].any() and not logits[2].any()
    texts = {vocabulary.tokens[index] for index in (logits[1] == 0).nonzero()[:, 0].tolist()}
    assert {b"a", b"b"} <= texts <= {b"a", b"b", b"aa", b"ab", b"ba", b"bb"}
    assert BitmaskBuilder().start([free], VOCAB_SIZE) is None
