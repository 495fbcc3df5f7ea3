"""Tests that a step that runs out of memory is split in half repeatedly until only one sequence fails."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_worker.engine.core.input_batch import Batch
from llava_worker.engine.model_runner import ModelRunner

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.outputs import collect_outputs
from tests.worker.engine.small_runner import small_runner


@pytest.fixture
def prompts() -> dict[str, Prompt]:
    rng = np.random.default_rng(41)
    return {name: random_prompt(rng, num_images=name in "ad") for name in "abcde"}


@pytest.mark.parametrize("max_sequences", [1, 2, 3])
def test_splitting_steps_does_not_change_the_outputs(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: dict[str, Prompt],
    max_sequences: int,
) -> None:
    def outputs(**options: Any) -> dict[str, list[int]]:
        sequences = [make_sequence(prompt, seq_id=name) for name, prompt in prompts.items()]
        return run(make_engine(num_blocks=128, **options), sequences)

    runner = small_runner(max_sequences)

    assert outputs(runner=runner) == outputs()
    assert runner.num_failures > 0


def test_a_sequence_that_does_not_fit_alone_fails_with_a_message_and_a_log_entry(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: dict[str, Prompt],
    caplog: pytest.LogCaptureFixture,
) -> None:
    others = {name: prompt for name, prompt in prompts.items() if name != "c"}
    expected = {
        name: run(make_engine(), [make_sequence(prompt, seq_id=name)])[name]
        for name, prompt in others.items()
    }
    engine = make_engine(runner=small_runner(never="c"), num_blocks=128)
    sequences = [make_sequence(prompt, seq_id=name) for name, prompt in prompts.items()]
    with caplog.at_level(logging.WARNING):
        outputs = collect_outputs(engine, *sequences)

    assert {name: [output.token_id for output in outputs[name]] for name in others} == expected
    (failure,) = outputs["c"]
    assert failure.error is not None
    assert failure.error.message.startswith("The worker ran out of memory while processing this request. ")
    assert failure.error.code is ErrorCode.INSUFFICIENT_MEMORY
    assert (
        "seq_id=c: out of memory in a step that contains only this sequence: CUDA out of memory"
        in caplog.text
    )


def test_cached_images_are_evicted_when_a_step_runs_out_of_memory(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: dict[str, Prompt]
) -> None:
    engine = make_engine(runner=small_runner(1), num_blocks=128)
    run(engine, [make_sequence(prompts[name], seq_id=name) for name in "ad"])

    assert engine.stats().num_image_cache_evictions_total > 0


def test_blocks_of_a_failed_step_are_not_shared(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: dict[str, Prompt]
) -> None:
    """If the same prompt is added again, nothing from the failed step is reused."""
    runner = small_runner(never="first")
    engine = make_engine(runner=runner)
    engine.add(make_sequence(prompts["b"], seq_id="first"))
    while engine.num_sequences:
        engine.step()
        engine.check()
    assert runner.num_failures == 1

    again = run(engine, [make_sequence(prompts["b"], seq_id="second")])["second"]

    assert engine.stats().num_cached_tokens_total == 0
    assert again == run(make_engine(), [make_sequence(prompts["b"])])["one"]


def test_other_device_errors_are_not_handled_as_out_of_memory(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompts: dict[str, Prompt]
) -> None:
    """The state of the engine is unknown after such an error, so the worker must exit.

    Another worker then resumes its jobs.
    """

    class BrokenRunner(ModelRunner):
        def _compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = make_engine(runner=BrokenRunner)
    engine.add(make_sequence(prompts["b"]))

    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()
