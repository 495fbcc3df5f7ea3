"""Tests that outputs match transformers with batching, chunked prefill, preemption and resumption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llava_worker.engine import Sequence

from tests.worker.checkpoints import Prompt, Reference, random_prompt, reference_output
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.random_traffic import run_random_traffic
from tests.worker.engine.seeds import for_each_seed

LENGTH = 20  # output tokens

Workload = tuple[list[Prompt], list[dict[str, Any]], list[list[int]]]


def draw_prompts(seed: int, count: int) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [random_prompt(rng, num_images=index % 4) for index in range(count)]


def test_greedy_outputs_equal_those_of_transformers(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, reference: Reference
) -> None:
    prompts = draw_prompts(1, 16)
    sequences = [make_sequence(prompt, seq_id=str(i)) for i, prompt in enumerate(prompts)]

    outputs = run(make_engine(num_blocks=256, max_num_sequences=16, max_batch_tokens=40), sequences)

    for index, prompt in enumerate(prompts):
        assert outputs[str(index)] == reference_output(reference, prompt, 12)


@pytest.fixture(scope="module")
def workload(make_engine: MakeEngine, make_sequence: MakeSequence, run: Run) -> Workload:
    """Prompts, their sampling options, and the output of each prompt when it runs alone in a large engine."""
    prompts = draw_prompts(2, 12)
    options: list[dict[str, Any]] = [
        {"temperature": 0.9, "top_p": 0.95, "seed": index} if index % 2 else {}
        for index in range(len(prompts))
    ]
    alone = [
        run(make_engine(max_batch_tokens=256), [make_sequence(prompt, max_new_tokens=LENGTH, **option)])[
            "one"
        ]
        for prompt, option in zip(prompts, options, strict=True)
    ]
    return prompts, options, alone


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 512},
        {"num_blocks": 512, "max_batch_tokens": 8},
        {"num_blocks": 26},
        {"num_blocks": 26, "is_sharing_prefixes": False},
        {"num_blocks": 100, "block_size": 1},
        {"num_blocks": 7, "block_size": 16},
        {"num_blocks": 30, "encoder_cache_bytes": 0, "max_batch_tokens": 8},
    ],
    ids=str,
)
def test_outputs_do_not_depend_on_the_batch_or_the_cache_size(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    workload: Workload,
    options: dict[str, Any],
) -> None:
    prompts, sampling, alone = workload
    sequences = [
        make_sequence(prompt, seq_id=str(index), max_new_tokens=LENGTH, **option)
        for index, (prompt, option) in enumerate(zip(prompts, sampling, strict=True))
    ]

    outputs = run(make_engine(**options), sequences)

    assert [outputs[str(index)] for index in range(len(prompts))] == alone


def test_a_small_kv_cache_causes_preemptions(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, workload: Workload
) -> None:
    engine = make_engine(num_blocks=26)
    run(
        engine,
        [make_sequence(prompt, seq_id=str(i), max_new_tokens=LENGTH) for i, prompt in enumerate(workload[0])],
    )

    assert engine.stats().num_preemptions_total > 0


@pytest.mark.parametrize("cut", [1, 5, 19])
def test_a_resumed_output_equals_the_uninterrupted_one(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, workload: Workload, cut: int
) -> None:
    prompts, sampling, alone = workload
    sequences = [
        make_sequence(prompt, seq_id=str(index), output_ids=output_ids[:cut], max_new_tokens=LENGTH, **option)
        for index, (prompt, option, output_ids) in enumerate(zip(prompts, sampling, alone, strict=True))
    ]

    outputs = run(make_engine(num_blocks=100), sequences)

    assert [outputs[str(index)] for index in range(len(prompts))] == alone


def test_random_traffic_changes_no_output_and_loses_no_block(
    make_engine: MakeEngine, make_sequence: MakeSequence, workload: Workload, pytestconfig: pytest.Config
) -> None:
    """Covers random arrivals, repeated prompts, aborts, tenants, and random cache sizes and token budgets."""

    def run_workload(seed: int) -> None:
        prompts, sampling, alone = workload
        rng = np.random.default_rng(seed)
        longest = max(len(prompt.token_ids) for prompt in prompts) + LENGTH
        block_size = int(rng.integers(1, 7))
        engine = make_engine(
            num_blocks=int(rng.integers(longest, 2 * longest)) // block_size + 1,
            block_size=block_size,
            max_num_sequences=int(rng.integers(1, 9)),
            max_batch_tokens=int(rng.integers(8, 40)),
            encoder_cache_bytes=int(rng.integers(0, 8000)),
            encoder_cost=float(rng.choice([0.0, 0.3, 1.0, 5.0])),
        )

        def make(which: int, seq_id: str, scope: str) -> Sequence:
            return make_sequence(
                prompts[which], seq_id=seq_id, max_new_tokens=LENGTH, cache_scope=scope, **sampling[which]
            )

        run_random_traffic(engine, rng, make, alone, num_sequences=int(rng.integers(5, 25)))

    for_each_seed(pytestconfig, run_workload, num_seeds=25)
