"""Tests of grammars in combination with other sampling parameters and with other sequences in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine import Sequence, SequenceRejected
from llava_worker.engine.sampling.grammar_bitmask import BitmaskBuilder
from llava_worker.engine.speculation.speculative_decoding import is_draftable
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.model.llava import Llava
from msgspec import structs

from tests.worker.checkpoints import random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.structured_output.grammar_kit import (
    EOS_ID,
    VOCAB_SIZE,
    Generation,
    Vocabulary,
    generate,
    make_model,
)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Llava:
    return make_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture
def generate_one(
    wide_model: Llava,
    grammars: GrammarCache,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
) -> Callable[..., Generation]:
    """Return a function that generates one output that matches a regular expression."""

    def generate_one(pattern: str, *neighbors: Sequence, **options: Any) -> Generation:
        sequence = make_sequence(random_prompt(np.random.default_rng(3), num_images=1), **options)
        sequence.grammar = grammars.compile(Grammar("regex", pattern))
        return generate(make_engine(over=wide_model), [sequence, *neighbors])["one"]

    return generate_one


def test_an_output_with_a_complete_grammar_finishes_with_stop(
    generate_one: Callable[..., Generation], vocabulary: Vocabulary
) -> None:
    generated = generate_one("ab", max_new_tokens=50)
    assert (vocabulary.text(generated.token_ids), generated.finish) == ("ab", "stop")
    assert generated.token_ids[-1] == EOS_ID


def test_a_truncated_output_finishes_with_length(
    generate_one: Callable[..., Generation], vocabulary: Vocabulary
) -> None:
    generated = generate_one("[ab]{30}", max_new_tokens=9)
    assert (len(generated.token_ids), generated.finish) == (9, "length")
    assert set(vocabulary.text(generated.token_ids)) <= {"a", "b"}


def test_min_tokens_delays_the_end_while_other_tokens_are_allowed(
    generate_one: Callable[..., Generation], vocabulary: Vocabulary
) -> None:
    favour_end = ((EOS_ID, 100.0),)
    assert len(generate_one("[ab]{1,40}", logit_bias=favour_end, max_new_tokens=50).token_ids) <= 3
    held = generate_one("[ab]{1,40}", logit_bias=favour_end, min_tokens=12, max_new_tokens=50)
    assert (len(held.token_ids), held.finish) == (13, "stop")


def test_a_complete_output_ends_before_min_tokens(
    generate_one: Callable[..., Generation], vocabulary: Vocabulary
) -> None:
    generated = generate_one("ab", min_tokens=20, max_new_tokens=50)
    assert (vocabulary.text(generated.token_ids), generated.finish) == ("ab", "stop")


def test_logit_bias_affects_only_allowed_tokens(
    generate_one: Callable[..., Generation], vocabulary: Vocabulary
) -> None:
    b, x = vocabulary.tokens.index(b"b"), vocabulary.tokens.index(b"x")
    generated = generate_one("a[ab]{5}", logit_bias=((b, 100.0), (x, 100.0)), max_new_tokens=50)
    assert vocabulary.text(generated.token_ids) == "abbbbb"


def test_penalties_and_truncation_select_only_allowed_tokens(
    generate_one: Callable[..., Generation], vocabulary: Vocabulary
) -> None:
    generated = generate_one(
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
    assert set(vocabulary.text(generated.token_ids)) <= set("abc")
    assert generated.finish == "stop"


def test_a_stop_token_ends_the_output_before_the_grammar_is_complete(
    generate_one: Callable[..., Generation], vocabulary: Vocabulary
) -> None:
    stops = tuple(index for index, text in enumerate(vocabulary.tokens) if b"b" in text)[:16]
    generated = generate_one("a[b]{30}", stop_token_ids=stops, max_new_tokens=50)
    assert generated.finish == "stop"
    assert generated.token_ids[-1] in stops


def test_logprobs_are_not_affected_by_the_grammar(generate_one: Callable[..., Generation]) -> None:
    generated = generate_one("[ab]{3}", num_logprobs=5, max_new_tokens=50)
    entries = [output.logprobs for output in generated.outputs if output.logprobs is not None]
    assert len(entries) == len(generated.outputs) and all(len(entry.top) == 5 for entry in entries)
    assert all(
        token_id not in dict(entry.top) or dict(entry.top)[token_id] == entry.logprob
        for token_id, entry in zip(generated.token_ids, entries, strict=True)
    )
    assert any(
        token_id not in dict(entry.top) for token_id, entry in zip(generated.token_ids, entries, strict=True)
    )


def test_ignore_eos_cannot_be_combined_with_a_grammar(generate_one: Callable[..., Generation]) -> None:
    with pytest.raises(SequenceRejected, match="ignore_eos"):
        generate_one("ab", ignore_eos=True)


def test_a_sequence_with_a_grammar_gets_no_drafts(
    grammars: GrammarCache, make_sequence: MakeSequence
) -> None:
    sequence = make_sequence(random_prompt(np.random.default_rng(0), num_images=0))
    assert is_draftable(sequence)
    sequence.grammar = grammars.compile(Grammar("regex", "ab"))
    assert not is_draftable(sequence)


def test_a_grammar_that_fails_midway_ends_only_its_own_sequence(
    generate_one: Callable[..., Generation],
    wide_model: Llava,
    vocabulary: Vocabulary,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    grammars: GrammarCache,
) -> None:
    rng = np.random.default_rng(4)
    prompts = {name: random_prompt(rng, num_images=1) for name in ("free", "held")}

    def neighbors() -> list[Sequence]:
        made = [make_sequence(prompt, seq_id=name, temperature=1.0) for name, prompt in prompts.items()]
        made[1].grammar = grammars.compile(Grammar("regex", "[abc]{9}"))
        return made

    broken_grammar = Grammar("regex", "[ab]{9}", param="guided_regex")
    broken = make_sequence(random_prompt(rng, num_images=1), seq_id="broken", output_ids=vocabulary.ids(" x"))
    broken.sampling = structs.replace(broken.sampling, grammar=broken_grammar)
    broken.grammar = grammars.compile(broken_grammar)
    without_failure = generate(make_engine(over=wide_model), neighbors())
    with_failure = generate(make_engine(over=wide_model), [*neighbors(), broken])
    assert with_failure["broken"].error is not None
    assert with_failure["broken"].error.code is ErrorCode.INVALID_REQUEST
    assert with_failure["broken"].error.param == "guided_regex"
    for name in prompts:
        assert with_failure[name].token_ids == without_failure[name].token_ids
        assert with_failure[name].error is None


def test_a_bitmask_changes_only_the_rows_of_its_sequences(
    grammars: GrammarCache, vocabulary: Vocabulary, make_sequence: MakeSequence
) -> None:
    prompt = random_prompt(np.random.default_rng(0), num_images=0)
    free, held = make_sequence(prompt), make_sequence(prompt, output_ids=vocabulary.ids(" "))
    held.grammar = grammars.compile(Grammar("regex", "[ab]{2}"))
    logits = torch.zeros(3, VOCAB_SIZE)
    bitmask = BitmaskBuilder().start([free, held, free], VOCAB_SIZE)
    assert bitmask is not None and bitmask.apply(logits) == {}
    assert not logits[0].any() and not logits[2].any()
    texts = {vocabulary.tokens[index] for index in (logits[1] == 0).nonzero()[:, 0].tolist()}
    assert {b"a", b"b"} <= texts <= {b"a", b"b", b"aa", b"ab", b"ba", b"bb"}
    assert BitmaskBuilder().start([free], VOCAB_SIZE) is None
