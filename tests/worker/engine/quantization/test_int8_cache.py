"""With keys and values in 8 bit an answer still does not depend on company, chunks, room or the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run

LENGTH = 16  # of an answer, in tokens


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(12)
    return [random_prompt(rng, num_images=index % 3) for index in range(10)]


@pytest.fixture(scope="module")
def alone(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> list[list[int]]:
    """Each prompt's answer when it has an engine of its own and goes through in one piece."""
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

    for _ in range(2):  # the second time most of each prompt may be found
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
    """The random model's logits lie close together: over ten outputs some token must turn."""
    exact = [
        run(make_engine(max_batch_tokens=256), [make_sequence(prompt, max_new_tokens=LENGTH)])["one"]
        for prompt in prompts
    ]

    assert exact != alone
    assert sum(exact_ids[0] == int8_ids[0] for exact_ids, int8_ids in zip(exact, alone, strict=True)) >= 8
