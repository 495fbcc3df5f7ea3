"""Tests that outputs with drafts are the same as outputs without them, whatever the drafter proposes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llava_worker.engine import EngineStats, Sequence, StepOutput
from llava_worker.engine.engine import Engine
from llava_worker.engine.speculation.drafter import Drafter

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.drafters import EagerDrafter, FixedPriceDrafter, ScriptedDrafter
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.random_traffic import run_random_traffic
from tests.worker.engine.seeds import for_each_seed

LENGTH = 24  # output tokens
FEW_TOKENS = ((40, 100.0), (41, 100.0), (42, 100.0))  # output with only these tokens soon repeats itself
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"logit_bias": FEW_TOKENS},
    {"temperature": 0.9, "top_p": 0.95, "num_logprobs": 2},
    {"temperature": 0.7, "min_tokens": 9, "logit_bias": FEW_TOKENS},
    {"repetition_penalty": 1.2},  # this sequence gets no drafts, but runs in the same batches
]

Outputs = list[list[int]]
Workload = tuple[list[Prompt], Outputs]


def copy_heavy(rng: np.random.Generator, *, num_images: int) -> Prompt:
    """Return a prompt that repeats some tokens, so that drafts from prompt lookup are sometimes correct."""
    prompt = random_prompt(rng, num_images=num_images)
    prompt.token_ids += prompt.token_ids[-8:] * 2
    return prompt


def options_of(index: int) -> dict[str, Any]:
    return {"max_new_tokens": LENGTH, "seed": index} | SAMPLINGS[index % len(SAMPLINGS)]


@pytest.fixture(scope="module")
def workload(make_engine: MakeEngine, make_sequence: MakeSequence, run: Run) -> Workload:
    """Prompts, and the output of each prompt when it runs alone and without drafts."""
    rng = np.random.default_rng(3)
    prompts = [copy_heavy(rng, num_images=index % 3) for index in range(12)]
    outputs = [
        run(make_engine(max_batch_tokens=256), [make_sequence(prompt, **options_of(index))])["one"]
        for index, prompt in enumerate(prompts)
    ]
    return prompts, outputs


def perfect(outputs: Outputs) -> Drafter:
    return ScriptedDrafter(by_name(outputs))


def wrong(every: int) -> Callable[[Outputs], Drafter]:
    return lambda outputs: ScriptedDrafter(by_name(outputs), wrong_every=every)


def by_name(outputs: Outputs) -> dict[str, list[int]]:
    return {str(index): output_ids for index, output_ids in enumerate(outputs)}


DRAFTERS: dict[str, Callable[[Outputs], Drafter]] = {
    "perfect": perfect,
    "half wrong": wrong(2),
    "lookup": lambda _: EagerDrafter(),
    "real": lambda _: FixedPriceDrafter(),
}


def outputs_of(
    engine: Engine, make_sequence: MakeSequence, run: Run, workload: Workload, *, cut: int = 0
) -> Outputs:
    prompts, outputs = workload
    sequences = [
        make_sequence(prompt, seq_id=str(index), output_ids=outputs[index][:cut], **options_of(index))
        for index, prompt in enumerate(prompts)
    ]
    generated = run(engine, sequences)
    return [generated[str(index)] for index in range(len(prompts))]


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 30},
        {"num_blocks": 120, "block_size": 1, "max_batch_tokens": 64},
        {"num_blocks": 8, "block_size": 16, "max_num_sequences": 2, "max_batch_tokens": 40},
    ],
    ids=str,
)
def test_outputs_do_not_depend_on_drafts(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    workload: Workload,
    drafter: str,
    options: dict[str, Any],
) -> None:
    engine = make_engine(drafter=DRAFTERS[drafter](workload[1]), **options)

    assert outputs_of(engine, make_sequence, run, workload) == workload[1]
    assert engine.stats().num_draft_tokens_total > 0


@pytest.mark.parametrize("drafter", ["half wrong", "lookup"])
@pytest.mark.parametrize("cut", [1, 7, LENGTH - 1])
def test_a_resumed_output_equals_the_uninterrupted_one(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, workload: Workload, drafter: str, cut: int
) -> None:
    engine = make_engine(drafter=DRAFTERS[drafter](workload[1]), num_blocks=100)

    assert outputs_of(engine, make_sequence, run, workload, cut=cut) == workload[1]


def test_correct_drafts_reduce_steps_and_wrong_drafts_add_none(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, workload: Workload
) -> None:
    def stats_with(drafter: Drafter | None) -> EngineStats:
        engine = make_engine(drafter=drafter, num_blocks=512, max_batch_tokens=256, max_num_sequences=16)
        outputs_of(engine, make_sequence, run, workload)
        return engine.stats()

    plain, right = stats_with(None), stats_with(perfect(workload[1]))
    rejected = stats_with(wrong(1)(workload[1]))

    assert plain.num_draft_tokens_total == 0
    assert right.num_accepted_tokens_total == right.num_draft_tokens_total > 0
    assert rejected.num_accepted_tokens_total == 0 < rejected.num_draft_tokens_total
    # If all drafts are correct, at most one additional token is computed per output: its last token.
    assert right.num_decode_tokens_total <= plain.num_decode_tokens_total + len(workload[0])
    # Sequences with penalties still need one step per token.
    assert right.num_batched_sequences_total < plain.num_batched_sequences_total / 2
    assert rejected.num_steps_total == plain.num_steps_total
    assert right.num_generated_tokens_total == plain.num_generated_tokens_total


def test_prompt_lookup_produces_accepted_drafts(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, workload: Workload
) -> None:
    engine = make_engine(drafter=EagerDrafter(), num_blocks=512, max_batch_tokens=128)
    outputs_of(engine, make_sequence, run, workload)

    assert engine.stats().num_accepted_tokens_total > 20


def test_drafts_do_not_change_log_probabilities(
    make_engine: MakeEngine, make_sequence: MakeSequence, workload: Workload
) -> None:
    prompts, outputs = workload

    def scored(drafter: Drafter | None) -> list[StepOutput]:
        engine = make_engine(drafter=drafter, num_blocks=512, max_batch_tokens=128)
        for index, prompt in enumerate(prompts):
            engine.add(make_sequence(prompt, seq_id=str(index), **options_of(index)))
        found: list[StepOutput] = []
        while engine.num_sequences:
            found += [output for output in engine.step() if output.logprobs is not None]
        return sorted(found, key=lambda output: int(output.seq_id))

    plain, drafted = scored(None), scored(wrong(3)(outputs))

    assert [output.token_id for output in drafted] == [output.token_id for output in plain] != []
    for drafted_output, plain_output in zip(drafted, plain, strict=True):
        assert drafted_output.logprobs is not None and plain_output.logprobs is not None
        assert drafted_output.logprobs.logprob == pytest.approx(plain_output.logprobs.logprob, abs=1e-4)
        assert [token for token, _ in drafted_output.logprobs.top] == [
            token for token, _ in plain_output.logprobs.top
        ]


def test_a_second_turn_reads_no_kv_cache_entries_of_rejected_drafts(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, workload: Workload
) -> None:
    prompts, outputs = workload
    first = prompts[0]
    second = Prompt([*first.token_ids, *outputs[0], 5, 6, 7], first.image_starts, first.pixels)
    expected = run(make_engine(), [make_sequence(second, max_new_tokens=LENGTH)])
    for every in (1, 2, 3):
        engine = make_engine(
            drafter=ScriptedDrafter({"0": outputs[0], "one": expected["one"]}, wrong_every=every)
        )
        run(engine, [make_sequence(first, seq_id="0", **options_of(0))])

        assert run(engine, [make_sequence(second, max_new_tokens=LENGTH)]) == expected
        assert engine.stats().num_cached_tokens_total > len(first.token_ids)


def test_random_traffic_changes_no_output_and_loses_no_block(
    make_engine: MakeEngine, make_sequence: MakeSequence, workload: Workload, pytestconfig: pytest.Config
) -> None:
    """Covers random arrivals, repeated prompts, aborts and tenants with various drafters and cache sizes."""

    def run_workload(seed: int) -> None:
        prompts, alone = workload
        rng = np.random.default_rng(seed)
        longest = max(len(prompt.token_ids) for prompt in prompts) + LENGTH
        block_size = int(rng.integers(1, 7))
        names = {f"{which}.{n}": output_ids for which, output_ids in enumerate(alone) for n in range(30)}
        drafters: list[Drafter] = [
            ScriptedDrafter(names),
            *(ScriptedDrafter(names, wrong_every=every) for every in (1, 2, 3)),
            EagerDrafter(),
            FixedPriceDrafter(),
        ]
        engine = make_engine(
            num_blocks=int(rng.integers(longest, 2 * longest)) // block_size + 1,
            block_size=block_size,
            max_num_sequences=int(rng.integers(1, 9)),
            max_batch_tokens=int(rng.integers(8, 80)),
            encoder_cache_bytes=int(rng.integers(0, 8000)),
            drafter=drafters[int(rng.integers(len(drafters)))],
        )

        def make(which: int, seq_id: str, scope: str) -> Sequence:
            return make_sequence(prompts[which], seq_id=seq_id, cache_scope=scope, **options_of(which))

        run_random_traffic(engine, rng, make, alone, num_sequences=int(rng.integers(5, 20)))

    for_each_seed(pytestconfig, run_workload, num_seeds=20)
