"""Tests of the lifecycle of a sequence in the engine."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_worker.engine import ImageSpan, Sequence, SequenceRejected, StepOutput
from llava_worker.engine.core.outputs import Finish
from llava_worker.engine.engine import Engine
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.outputs import num_computed_tokens


@pytest.fixture
def prompt() -> Prompt:
    return random_prompt(np.random.default_rng(7), num_images=1)


def final_of(engine: Engine) -> StepOutput:
    """Run steps until a sequence finishes. Return its final output."""
    while True:
        for output in engine.step():
            if output.is_final:
                return output


def test_a_sequence_finishes_after_max_new_tokens(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    engine = make_engine(eos_ids=frozenset())
    engine.add(make_sequence(prompt, max_new_tokens=3))

    outputs = [output for _ in range(20) for output in engine.step()]

    assert [output.finish for output in outputs] == [None, None, "length"]
    assert engine.num_sequences == 0


def test_a_sequence_finishes_at_the_end_of_sequence_token(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    tokens = run(make_engine(eos_ids=frozenset()), [make_sequence(prompt)])["one"]
    eos = tokens[4]
    engine = make_engine(eos_ids=frozenset({eos}))
    engine.add(make_sequence(prompt))

    final = final_of(engine)

    assert (final.token_id, final.finish) == (eos, "stop")
    assert engine.stats().num_generated_tokens_total == tokens.index(eos) + 1


def test_ignore_eos_continues_after_the_end_of_sequence_token(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    tokens = run(make_engine(eos_ids=frozenset()), [make_sequence(prompt)])["one"]
    engine = make_engine(eos_ids=frozenset({tokens[4]}))

    assert run(engine, [make_sequence(prompt, ignore_eos=True)])["one"] == tokens


def test_a_sequence_finishes_at_the_end_of_the_context(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    num_prompt = len(prompt.token_ids)
    engine = make_engine(eos_ids=frozenset(), context_length=num_prompt + 5)

    output_ids = run(engine, [make_sequence(prompt, max_new_tokens=100)])["one"]

    assert len(output_ids) == 5


@pytest.mark.parametrize(("output_ids", "finish"), [([5, 6, 2], "stop"), ([5, 6, 7], "length")])
def test_a_resumed_output_that_is_complete_finishes_without_a_token(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    prompt: Prompt,
    output_ids: list[int],
    finish: Finish,
) -> None:
    engine = make_engine(eos_ids=frozenset({2}))
    engine.add(make_sequence(prompt, output_ids=output_ids, max_new_tokens=3))
    assert engine.num_sequences == 1

    assert engine.step() == [StepOutput("one", finish=finish)]
    assert engine.num_sequences == 0


def test_an_aborted_sequence_is_removed_immediately(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    engine = make_engine()
    engine.add(make_sequence(prompt))
    engine.step()
    assert engine.stats().num_free_blocks < engine.stats().num_blocks

    engine.abort("one")

    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    assert engine.num_sequences == 0
    assert engine.step() == []
    engine.check()


def test_aborting_waiting_aborted_or_unknown_sequences_is_not_an_error(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    engine = make_engine(max_num_sequences=1)
    engine.add(make_sequence(prompt))
    engine.add(make_sequence(prompt, seq_id="two"))
    engine.step()

    for seq_id in ("two", "two", "unknown"):
        engine.abort(seq_id)

    assert engine.num_sequences == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failing_sequence_does_not_affect_the_batch(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    model: Llava,
    prompt: Prompt,
    is_async: bool,
) -> None:
    rng = np.random.default_rng(8)
    others = [random_prompt(rng, num_images=1) for _ in range(3)]
    expected = [run(make_engine(), [make_sequence(other)])["one"] for other in others]
    poison = 120  # a token that never occurs in random prompts
    broken = Prompt([1, 5, poison, 9, 9, 9, 9, 9])
    healthy = model.language_model.embed_tokens.weight[poison].clone()
    model.language_model.embed_tokens.weight[poison] = torch.nan
    engine = make_engine(num_blocks=40, is_async=is_async)
    try:
        engine.add(make_sequence(broken, seq_id="broken"))
        for index, other in enumerate(others):
            engine.add(make_sequence(other, seq_id=str(index)))
        outputs: dict[str, list[StepOutput]] = {}
        while engine.num_sequences:
            for output in engine.step():
                outputs.setdefault(output.seq_id, []).append(output)
            engine.check()
    finally:
        model.language_model.embed_tokens.weight[poison] = healthy

    assert [output.error and output.error.message for output in outputs["broken"]] == [
        "The model produced NaN or infinity after 0 output tokens."
    ]
    for index, output_ids in enumerate(expected):
        assert [output.token_id for output in outputs[str(index)]] == output_ids
    assert engine.stats().num_free_blocks == engine.stats().num_blocks

    # The failed sequence left nothing in the caches: with the weights restored, the output is the same as in
    # a new engine.
    assert run(engine, [make_sequence(broken)]) == run(make_engine(), [make_sequence(broken)])


@pytest.mark.parametrize("encoder_cost", [0.0, 0.3, 1.0, 3.0])
def test_several_images_per_step_give_the_same_texts_as_one(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, encoder_cost: float
) -> None:
    prompts = [random_prompt(np.random.default_rng(seed), num_images=1 + seed % 3) for seed in range(6)]

    def texts(max_batch_tokens: int) -> tuple[dict[str, list[int]], list[int]]:
        engine = make_engine(num_blocks=400, max_batch_tokens=max_batch_tokens, encoder_cost=encoder_cost)
        num_tiles: list[int] = []
        encode = engine._runner.encode

        def count(tiles: torch.Tensor) -> torch.Tensor:
            num_tiles.append(len(tiles))
            return encode(tiles)

        engine._runner.encode = count
        sequences = [
            make_sequence(prompt, seq_id=str(index), temperature=0.8 * (index % 2), seed=index)
            for index, prompt in enumerate(prompts)
        ]
        return run(engine, sequences), num_tiles

    one_per_step, single = texts(8)
    many_per_step, several = texts(256)

    assert set(single) == {1} or encoder_cost < 1
    assert max(several) >= 6
    assert sum(several) == sum(single) == sum(len(prompt.pixels) for prompt in prompts)
    assert many_per_step == one_per_step


def test_a_cached_image_is_not_encoded_again(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    engine = make_engine()
    run(engine, [make_sequence(prompt, seq_id=str(index)) for index in range(4)])
    longer = Prompt([1, 9, *prompt.token_ids[1:]], [prompt.image_starts[0] + 1], prompt.pixels)
    run(engine, [make_sequence(longer)])

    assert engine.stats().num_encoded_images_total == 1


def test_only_the_last_token_of_a_cached_prompt_is_computed(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    num_prompt = len(prompt.token_ids)
    engine = make_engine()
    run(engine, [make_sequence(prompt, max_new_tokens=1)])
    assert num_computed_tokens(engine) == num_prompt

    engine.add(make_sequence(prompt, max_new_tokens=1))
    output = final_of(engine)

    num_shared = num_prompt - 1
    assert output.num_cached_tokens == num_shared
    assert engine.stats().num_cached_tokens_total == num_shared
    assert num_computed_tokens(engine) == 2 * num_prompt - num_shared


def test_a_second_turn_reuses_everything_computed_in_the_first(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    engine = make_engine(eos_ids=frozenset())
    output_ids = run(engine, [make_sequence(prompt)])["one"]
    first_turn = prompt.token_ids + output_ids
    second = Prompt([*first_turn, 5, 6, 7, 8, 9], prompt.image_starts, prompt.pixels)

    engine.add(make_sequence(second))
    output = final_of(engine)

    assert output.num_cached_tokens == len(first_turn) - 1  # the last token was sampled but not computed
    assert engine.stats().num_encoded_images_total == 1


def test_tenants_share_neither_prompts_nor_images(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    engine = make_engine()
    run(engine, [make_sequence(prompt, cache_scope="a")])
    run(engine, [make_sequence(prompt, cache_scope="b")])

    assert engine.stats().num_cached_tokens_total == 0
    assert engine.stats().num_encoded_images_total == 2


def test_a_different_image_at_the_same_position_is_not_a_cache_hit(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt
) -> None:
    engine = make_engine()
    other = Prompt(prompt.token_ids, prompt.image_starts, [255 - prompt.pixels[0]])
    expected = run(make_engine(), [make_sequence(other)])
    run(engine, [make_sequence(prompt)])

    assert run(engine, [make_sequence(other)]) == expected


def test_a_context_larger_than_the_kv_cache_is_rejected(make_engine: MakeEngine) -> None:
    with pytest.raises(ValueError, match="context of 41 tokens does not fit in a KV cache of 40"):
        make_engine(num_blocks=10, block_size=4, context_length=41)


def rejection_of(engine: Engine, sequence: Sequence) -> SequenceRejected:
    with pytest.raises(SequenceRejected) as caught:
        engine.add(sequence)
    assert engine.num_sequences == 0
    return caught.value


def test_a_prompt_that_fills_the_context_is_rejected(
    make_engine: MakeEngine, make_sequence: MakeSequence
) -> None:
    rejected = rejection_of(make_engine(context_length=20), make_sequence(Prompt([1] * 20)))

    assert rejected.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "20 tokens" in rejected.error.message


def test_the_longest_prompt_that_fits_is_served(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run
) -> None:
    engine = make_engine(num_blocks=5, eos_ids=frozenset())

    assert len(run(engine, [make_sequence(Prompt([1] * 19))])["one"]) == 1


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"prompt_ids": []}, "empty"),
    (
        {"prompt_ids": [1, 128, 127, 127, 127, 127]},
        "Token ID 128 is outside the vocabulary; it must be between 0 and 127",
    ),
    ({"output_ids": [-1]}, "Token ID -1 is outside the vocabulary"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1"),
    ({"pixels": []}, "The prompt contains 1 images, but pixel data was sent for 0"),
    ({"pixels": [bytes(28 * 28 * 3 - 1)]}, "2351 bytes for 4 tokens"),
    ({"pixels": [bytes(2 * 28 * 28 * 3)]}, "4704 bytes for 4 tokens"),
    ({"images": [ImageSpan(4, 4, "d")]}, r"spans tokens \[4, 8\)"),
    ({"images": [ImageSpan(2, 3, "d")]}, "for 3 tokens"),
]


def test_a_sequence_that_would_break_a_step_is_rejected(make_engine: MakeEngine) -> None:
    fields: dict[str, Any] = {
        "prompt_ids": [1, 5, 127, 127, 127, 127],
        "images": [ImageSpan(2, 4, "d")],
        "pixels": [bytes(28 * 28 * 3)],
        "max_new_tokens": 3,
    }
    make_engine().add(Sequence(seq_id="usable", **fields))
    engine = make_engine()
    for change, message in UNUSABLE:
        rejected = rejection_of(engine, Sequence(seq_id="one", **fields | change))

        assert rejected.error.code is ErrorCode.INVALID_REQUEST
        assert re.search(message, rejected.error.message), change


def test_a_second_sequence_with_the_same_id_is_rejected(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    engine = make_engine()
    engine.add(make_sequence(prompt))

    with pytest.raises(SequenceRejected, match="already"):
        engine.add(make_sequence(prompt))
