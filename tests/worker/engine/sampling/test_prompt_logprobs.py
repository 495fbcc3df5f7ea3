"""Tests that prompt log-probabilities match transformers and are returned exactly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine.sampling.logprobs import ROWS_AT_ONCE

from tests.worker.checkpoints import Prompt, Reference, random_prompt, reference_logits
from tests.worker.engine.drafters import ScriptedDrafter
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.outputs import collect_outputs
from tests.worker.engine.small_runner import small_runner

TOLERANCE = 1e-4
Scored = Callable[..., Sequence]


@pytest.fixture
def scored(make_sequence: MakeSequence) -> Scored:
    """Return a function that makes sequences that request prompt log-probabilities."""

    def make(token_ids: list[int], name: str = "one", *, num_logprobs: int = 1, **options: Any) -> Sequence:
        sequence = make_sequence(Prompt(token_ids), seq_id=name, num_logprobs=num_logprobs, **options)
        sequence.num_prompt_logprobs = num_logprobs
        return sequence

    return make


def random_ids(num: int, seed: int = 0) -> list[int]:
    return [1, *np.random.default_rng(seed).integers(3, 100, num - 1).tolist()]


def assert_equals_the_reference(
    reference: Reference, token_ids: list[int], output: StepOutput, num_top: int
) -> None:
    assert output.error is None
    expected = reference_logits(reference, Prompt(token_ids)).log_softmax(-1)[:-1]
    assert len(output.prompt_logprobs) == len(expected) == len(token_ids) - 1
    for token_id, row, found in zip(token_ids[1:], expected, output.prompt_logprobs, strict=True):
        assert found.logprob == pytest.approx(float(row[token_id]), abs=TOLERANCE)
        assert found.rank == 1 + int((row > row[token_id]).sum())
        best = row.topk(num_top)
        assert [token_id for token_id, _ in found.top] == best.indices.tolist()
        assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("max_batch_tokens", [8, 16, 512], ids=lambda num: f"{num} tokens per step")
def test_prompt_logprobs_are_the_log_softmax_of_transformers_logits(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    scored: Scored,
    reference: Reference,
    max_batch_tokens: int,
) -> None:
    engine = make_engine(num_blocks=128, max_batch_tokens=max_batch_tokens)
    prompts = {name: random_ids(num, num) for name, num in {"a": 1, "b": 2, "c": 17, "d": 90}.items()}
    chat = random_prompt(np.random.default_rng(3), num_images=1)
    processed: dict[str, Any] = {
        "temperature": 1.0,
        "presence_penalty": 1.5,
        "logit_bias": ((7, 50.0),),
    }  # these must not affect log-probabilities
    sequences = [
        scored(prompt, name, num_logprobs=top, max_new_tokens=3, **processed)
        for top, (name, prompt) in zip((1, 0, 5, 2), prompts.items(), strict=True)
    ]
    outputs = collect_outputs(engine, make_sequence(chat, seq_id="chat", num_logprobs=1), *sequences)
    for sequence in sequences:
        first, *rest = outputs[sequence.seq_id]
        num_top = sequence.sampling.num_logprobs or 0
        assert_equals_the_reference(reference, prompts[sequence.seq_id], first, num_top)
        assert first.logprobs is not None and first.token_id is not None
        assert not any(output.prompt_logprobs for output in rest)
    assert not any(output.prompt_logprobs for output in outputs["chat"])


def test_a_scored_prompt_is_computed_even_if_cached_and_can_be_reused(
    make_engine: MakeEngine, make_sequence: MakeSequence, scored: Scored, reference: Reference
) -> None:
    token_ids = random_ids(40)
    engine = make_engine(num_blocks=128)
    collect_outputs(engine, make_sequence(Prompt(token_ids)))
    (output, *_) = collect_outputs(engine, scored(token_ids))["one"]
    assert_equals_the_reference(reference, token_ids, output, 1)
    assert output.num_cached_tokens == 0

    fresh = make_engine(num_blocks=128)
    collect_outputs(fresh, scored(token_ids))
    assert collect_outputs(fresh, make_sequence(Prompt(token_ids)))["one"][0].num_cached_tokens == 39


def test_equal_scored_prompts_do_not_wait_for_each_other(
    make_engine: MakeEngine, scored: Scored, reference: Reference
) -> None:
    token_ids = random_ids(40)
    engine = make_engine(num_blocks=128, max_batch_tokens=512)
    outputs = collect_outputs(engine, *(scored(token_ids, name, max_new_tokens=1) for name in "ab"))
    assert engine.stats().num_steps_total == 1
    for name in "ab":
        assert_equals_the_reference(reference, token_ids, outputs[name][0], 1)


def test_prompt_logprobs_are_returned_once_after_a_preemption_during_prefill(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    scored: Scored,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(num_blocks=14, max_num_sequences=2, max_batch_tokens=2, eos_ids=frozenset())
    lengths: list[int] = []
    preempt = engine._scheduler._preempt_last

    def recording() -> Sequence:
        preempted = preempt()
        lengths.append(len(preempted.prompt_logprobs))
        return preempted

    monkeypatch.setattr(engine._scheduler, "_preempt_last", recording)
    first = make_sequence(Prompt(random_ids(4, 1)), seq_id="first", max_new_tokens=30)
    token_ids = random_ids(40)
    outputs = collect_outputs(engine, first, scored(token_ids, "long", max_new_tokens=2))["long"]
    assert 0 < lengths[0] < 39
    assert [len(output.prompt_logprobs) for output in outputs] == [39, 0]
    assert_equals_the_reference(reference, token_ids, outputs[0], 1)


def test_without_output_tokens_only_prompt_logprobs_are_returned(
    make_engine: MakeEngine, scored: Scored, reference: Reference
) -> None:
    token_ids = random_ids(17)  # the last chunk has one token, like a decode step
    drafter = ScriptedDrafter({"one": [5] * 8})
    (output,) = collect_outputs(make_engine(drafter=drafter), scored(token_ids, max_new_tokens=0))["one"]
    assert (output.token_id, output.finish) == (None, "length")
    assert drafter.acceptances == []  # no tokens were drafted
    assert_equals_the_reference(reference, token_ids, output, 1)


def test_a_sequence_without_tokens_or_prompt_logprobs_is_not_computed(
    make_engine: MakeEngine, make_sequence: MakeSequence
) -> None:
    engine = make_engine()
    (output,) = collect_outputs(engine, make_sequence(Prompt(random_ids(20)), max_new_tokens=0))["one"]
    assert output == StepOutput("one", finish="length")
    assert engine.stats().num_prefill_tokens_total == 0


def test_a_resumed_sequence_does_not_return_prompt_logprobs_again(
    make_engine: MakeEngine, make_sequence: MakeSequence, scored: Scored
) -> None:
    token_ids = random_ids(20)
    engine = make_engine()
    collect_outputs(engine, make_sequence(Prompt(token_ids)))
    outputs = collect_outputs(engine, scored(token_ids, output_ids=[9], max_new_tokens=3))["one"]
    assert not any(output.prompt_logprobs for output in outputs)
    assert outputs[0].num_cached_tokens == 20


def test_prompt_logprobs_are_returned_once_if_a_step_is_repeated(
    make_engine: MakeEngine, scored: Scored, reference: Reference
) -> None:
    """The runner records the log-probabilities of a step before the step runs out of memory."""
    prompts = {name: random_ids(30, seed) for seed, name in enumerate("abc")}
    runner = small_runner(1)
    outputs = collect_outputs(
        make_engine(num_blocks=128, runner=runner),
        *(scored(prompt, name, max_new_tokens=1) for name, prompt in prompts.items()),
    )
    assert runner.num_failures > 0
    for name, prompt in prompts.items():
        assert_equals_the_reference(reference, prompt, outputs[name][0], 1)


def test_prompt_logits_are_computed_for_a_few_rows_at_a_time(
    make_engine: MakeEngine, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(num_blocks=128, max_batch_tokens=512)
    sizes: list[int] = []
    logits = engine._runner.model.logits

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(engine._runner.model, "logits", watched)
    token_ids = random_ids(2 * ROWS_AT_ONCE + 11)
    (output,) = collect_outputs(engine, scored(token_ids, max_new_tokens=1))["one"]
    assert len(output.prompt_logprobs) == len(token_ids) - 1
    assert sorted(sizes) == [1, 10, ROWS_AT_ONCE, ROWS_AT_ONCE]


def test_a_prompt_with_infinite_logits_fails(
    make_engine: MakeEngine, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    logits = engine._runner.model.logits

    def infinite(hidden: torch.Tensor) -> torch.Tensor:
        return logits(hidden) * (torch.inf if len(hidden) > 1 else 1)

    monkeypatch.setattr(engine._runner.model, "logits", infinite)
    (output,) = collect_outputs(engine, scored(random_ids(12), max_new_tokens=1))["one"]
    assert output.error is not None and "NaN or infinity" in output.error.message
    assert output.prompt_logprobs == ()
