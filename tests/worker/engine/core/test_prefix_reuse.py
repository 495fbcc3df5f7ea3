"""Tests that count how many tokens and images are computed with prefix caching enabled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llava_worker.engine import Sequence
from llava_worker.engine.engine import Engine

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.outputs import num_computed_tokens

BLOCK = 4


@pytest.fixture
def image_prompt() -> Prompt:
    return random_prompt(np.random.default_rng(3), num_images=2)


def prompts_with_suffixes(prompt: Prompt, count: int) -> list[Prompt]:
    """Return prompts that begin with ``prompt`` and end with different suffixes of 1 to 9 tokens."""
    rng = np.random.default_rng(4)
    ends = [[50 + number, *rng.integers(3, 100, number % 9).tolist()] for number in range(count)]
    return [Prompt(prompt.token_ids + end, prompt.image_starts, prompt.pixels) for end in ends]


def after(sentence: list[int], prompt: Prompt) -> Prompt:
    starts = [start + len(sentence) for start in prompt.image_starts]
    return Prompt(sentence + prompt.token_ids, starts, prompt.pixels)


def computed_by(engine: Engine, sequences: list[Sequence], run: Run) -> int:
    before = num_computed_tokens(engine)
    run(engine, sequences)
    return num_computed_tokens(engine) - before


@pytest.mark.parametrize("num_known", [0, 1, 4, 6])
def test_sixteen_prompts_with_a_common_image_prefix_compute_it_once(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, image_prompt: Prompt, num_known: int
) -> None:
    sentence = [1, 30, 31, 32, 33, 34, 35]
    image_prompt = after(sentence, image_prompt)
    prompts = prompts_with_suffixes(image_prompt, 16)
    sequences = [make_sequence(each, seq_id=str(i), max_new_tokens=1) for i, each in enumerate(prompts)]
    engine = make_engine(num_blocks=256, block_size=BLOCK, max_num_sequences=16, max_batch_tokens=64)
    earlier = Prompt([*sentence[:num_known], 20, 21], [], [])
    run(engine, [make_sequence(earlier, seq_id="earlier", max_new_tokens=1)])

    num_computed = computed_by(engine, sequences, run)

    num_shared = len(image_prompt.token_ids)
    num_own = sum(len(prompt.token_ids) - num_shared for prompt in prompts)
    assert num_computed == num_shared - num_known + num_own
    assert engine.stats().num_encoded_images_total == 2


def test_an_image_at_different_positions_of_concurrent_prompts_is_encoded_once(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run
) -> None:
    pixels = random_prompt(np.random.default_rng(5), num_images=1).pixels[0]
    prompts = [Prompt([1, *[60 + n] * n, *[127] * 4, 9], [n + 1], [pixels]) for n in range(6)]
    engine = make_engine(num_blocks=256, max_batch_tokens=200)

    run(engine, [make_sequence(each, seq_id=str(i), max_new_tokens=1) for i, each in enumerate(prompts)])

    assert engine.stats().num_cached_tokens_total == 0  # there are no prefix cache hits
    assert engine.stats().num_encoded_images_total == 1


def test_without_prefix_caching_all_sixteen_prompts_are_computed(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, image_prompt: Prompt
) -> None:
    prompts = prompts_with_suffixes(image_prompt, 16)
    sequences = [make_sequence(each, seq_id=str(i), max_new_tokens=1) for i, each in enumerate(prompts)]
    engine = make_engine(num_blocks=256, is_sharing_prefixes=False)

    assert computed_by(engine, sequences, run) == sum(len(prompt.token_ids) for prompt in prompts)


def test_four_outputs_for_one_prompt_compute_it_once(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, image_prompt: Prompt
) -> None:
    def duplicates() -> list[Sequence]:
        return [
            make_sequence(image_prompt, seq_id=str(seed), temperature=0.9, seed=seed, max_new_tokens=5)
            for seed in range(4)
        ]

    engine = make_engine(num_blocks=256, block_size=BLOCK, max_batch_tokens=64, eos_ids=frozenset())
    apart = make_engine(num_blocks=256, is_sharing_prefixes=False, eos_ids=frozenset())
    outputs = run(engine, duplicates())

    num_prompt = len(image_prompt.token_ids)
    assert engine.stats().num_prefill_tokens_total == num_prompt + 3  # the last token of each duplicate
    assert outputs == run(apart, duplicates())
    assert apart.stats().num_prefill_tokens_total == 4 * num_prompt


def test_a_duplicate_continues_alone_if_the_first_is_aborted_during_prefill(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, image_prompt: Prompt
) -> None:
    alone = run(make_engine(), [make_sequence(image_prompt, seq_id="second")])
    engine = make_engine(block_size=BLOCK, max_batch_tokens=8)
    engine.add(make_sequence(image_prompt, seq_id="first"))
    second = make_sequence(image_prompt, seq_id="second")
    engine.add(second)
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 1)

    engine.abort("first")
    outputs: dict[str, list[int | None]] = {"second": []}
    while engine.num_sequences:
        for output in engine.step():
            outputs["second"].append(output.token_id)
        engine.check()

    assert outputs == alone
    assert second.num_cached == 8  # the tokens that were computed for the first sequence


def test_a_second_turn_computes_only_its_new_tokens(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, image_prompt: Prompt
) -> None:
    engine = make_engine(block_size=BLOCK, eos_ids=frozenset())
    output_ids = run(engine, [make_sequence(image_prompt, max_new_tokens=10)])["one"]
    follow_up = [5, 6, 7, 8, 9]
    second = Prompt(
        image_prompt.token_ids + output_ids + follow_up, image_prompt.image_starts, image_prompt.pixels
    )

    num_computed = computed_by(engine, [make_sequence(second, max_new_tokens=1)], run)

    assert num_computed == 1 + len(follow_up)  # the last output token was sampled but not computed
    assert engine.stats().num_encoded_images_total == 2


@pytest.mark.parametrize(("scopes", "num_hits"), [(("a", "b"), 0), (("public", "public"), 2)])
def test_tenants_share_cached_data_only_if_both_are_public(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    image_prompt: Prompt,
    scopes: tuple[str, str],
    num_hits: int,
) -> None:
    engine = make_engine(num_blocks=256)
    other_words = Prompt([1, 9, *image_prompt.token_ids[1:]], [], image_prompt.pixels)
    other_words.image_starts = [start + 1 for start in image_prompt.image_starts]
    first, second = scopes
    run(engine, [make_sequence(image_prompt, cache_scope=first)])

    run(engine, [make_sequence(image_prompt, cache_scope=second)])
    assert (engine.stats().num_cached_tokens_total > 0) == bool(num_hits)

    run(engine, [make_sequence(other_words, cache_scope=second)])
    stats = engine.stats()
    assert stats.num_image_cache_hits_total == (
        num_hits if num_hits else 2
    )  # hits on the tenant's own images, which the second run cached
    assert stats.num_encoded_images_total == (2 if num_hits else 4)


@pytest.mark.parametrize("is_int8", [False, True])
def test_a_copy_of_rows_does_not_change_its_source(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    image_prompt: Prompt,
    is_int8: bool,
) -> None:
    """All prompts share the same partial block, but continue with different tokens."""

    def engine_of(**options: Any) -> Engine:
        return make_engine(block_size=16, is_int8=is_int8, **options)

    longer = [
        Prompt(image_prompt.token_ids + end, image_prompt.image_starts, image_prompt.pixels)
        for end in ([], [40, 41], [60, 61, 62])
    ]
    alone = [run(engine_of(is_sharing_prefixes=False), [make_sequence(each)])["one"] for each in longer]
    engine = engine_of()

    assert [run(engine, [make_sequence(each)])["one"] for each in longer] == alone
    assert run(engine, [make_sequence(each, seq_id=str(i)) for i, each in enumerate(longer)]) == {
        str(i): output_ids for i, output_ids in enumerate(alone)
    }
