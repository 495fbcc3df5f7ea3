"""Tests that with an int8 KV cache, outputs do not depend on batches, chunks, cache size or cache hits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run

LENGTH = 16  # output tokens


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(12)
    return [random_prompt(rng, num_images=index % 3) for index in range(10)]


@pytest.fixture(scope="module")
def alone(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> list[list[int]]:
    """The output of each prompt when it runs alone and without chunked prefill."""
    return [
        run(
            make_engine(is_int8=True, max_batch_tokens=256),
            [make_sequence(prompt, max_new_tokens=LENGTH)],
        )["one"]
        for prompt in prompts
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 512},
        {"num_blocks": 512, "max_batch_tokens": 8},
        {"num_blocks": 26},
        {"num_blocks": 7, "block_size": 16},
        {"num_blocks": 100, "block_size": 1, "is_sharing_prefixes": False},
    ],
    ids=str,
)
def test_int8_outputs_do_not_depend_on_the_batch_or_the_cache_size(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
    alone: list[list[int]],
    options: dict[str, Any],
) -> None:
    engine = make_engine(is_int8=True, **options)

    for _ in range(2):  # in the second run, most of each prompt is cached
        outputs = run(
            engine,
            [make_sequence(p, seq_id=str(i), max_new_tokens=LENGTH) for i, p in enumerate(prompts)],
        )
        assert [outputs[str(index)] for index in range(len(prompts))] == alone

    is_sharing = options.get("is_sharing_prefixes", True)
    assert (engine.stats().num_cached_tokens_total > 0) == is_sharing


def test_the_int8_cache_changes_some_tokens(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
    alone: list[list[int]],
) -> None:
    """A random model has similar logits for many tokens, so at least one token in ten outputs must change."""
    exact = [
        run(make_engine(max_batch_tokens=256), [make_sequence(prompt, max_new_tokens=LENGTH)])["one"]
        for prompt in prompts
    ]

    assert exact != alone
    assert sum(exact_ids[0] == int8_ids[0] for exact_ids, int8_ids in zip(exact, alone, strict=True)) >= 8
