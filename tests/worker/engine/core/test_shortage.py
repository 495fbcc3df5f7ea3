"""A step that finds no memory is made in halves; who does not fit alone fails alone."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_worker.engine.model_runner import ModelRunner

from tests.worker.checkpoints import Prompt, random_prompt


def short_of(most_sequences: int, *, never: str = "") -> type[ModelRunner]:
    """A runner with memory for so many sequences a step, and none for the one called ``never``.

    It fails where a device does, in the middle: with keys and values of the step in the cache already.
    """

    class ShortRunner(ModelRunner):
        num_failures = 0

        def _compute(self, batch):
            computed = super()._compute(batch)
            chunks = {chunk.sequence.seq_id for chunk in self.latest}
            if len(chunks) > most_sequences or never in chunks:
                type(self).num_failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return computed

        def launch(self, chunks, **more):
            self.latest = chunks
            return super().launch(chunks, **more)

    return ShortRunner


@pytest.fixture
def prompts() -> dict[str, Prompt]:
    rng = np.random.default_rng(41)
    return {name: random_prompt(rng, num_images=name in "ad") for name in "abcde"}


@pytest.mark.parametrize("most", [1, 2, 3])
def test_answers_are_those_of_a_device_with_room(make_engine, make_sequence, run, prompts, most: int) -> None:
    def answers(**options: object) -> dict[str, list[int]]:
        sequences = [make_sequence(prompt, seq_id=name) for name, prompt in prompts.items()]
        return run(make_engine(num_blocks=128, **options), sequences)

    short = short_of(most)

    assert answers(runner=short) == answers()
    assert short.num_failures > 0


def test_who_does_not_fit_alone_fails_alone_with_a_sentence_and_in_the_log(
    make_engine, make_sequence, run, prompts, caplog: pytest.LogCaptureFixture
) -> None:
    others = {name: prompt for name, prompt in prompts.items() if name != "c"}
    wanted = {
        name: run(make_engine(), [make_sequence(prompt, seq_id=name)])[name]
        for name, prompt in others.items()
    }
    engine = make_engine(runner=short_of(9, never="c"), num_blocks=128)
    for name, prompt in prompts.items():
        engine.add(make_sequence(prompt, seq_id=name))

    told: dict[str, list] = {name: [] for name in prompts}
    with caplog.at_level(logging.WARNING):
        while engine.num_sequences:
            for output in engine.step():
                told[output.seq_id].append(output)
            engine.check()

    assert {name: [output.token_id for output in told[name]] for name in others} == wanted
    (failure,) = told["c"]
    assert failure.error is not None
    assert (
        failure.error.message == "the worker's memory is too short for it: try again later, or ask for less"
    )
    assert failure.error.code is ErrorCode.INSUFFICIENT_MEMORY
    assert "seq_id=c: a step of it alone finds no memory: CUDA out of memory" in caplog.text
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_pictures_already_encoded_are_given_up_for_it(make_engine, make_sequence, run, prompts) -> None:
    engine = make_engine(runner=short_of(1), num_blocks=128)
    run(engine, [make_sequence(prompts[name], seq_id=name) for name in "ad"])

    assert engine.stats().num_image_cache_evictions_total > 0


def test_what_was_not_computed_is_shared_with_nobody(make_engine, make_sequence, run, prompts) -> None:
    """The same prompt comes again once there is memory: nothing of the failed step is taken for computed."""
    short = short_of(9, never="first")
    engine = make_engine(runner=short)
    engine.add(make_sequence(prompts["b"], seq_id="first"))
    while engine.num_sequences:
        engine.step()
        engine.check()
    assert short.num_failures == 1

    again = run(engine, [make_sequence(prompts["b"], seq_id="second")])["second"]

    assert engine.stats().num_cached_tokens_total == 0
    assert again == run(make_engine(), [make_sequence(prompts["b"])])["one"]


def test_another_failure_of_the_device_is_not_taken_for_a_shortage(
    make_engine, make_sequence, prompts
) -> None:
    """Nobody knows what state the engine is in: its worker ends, and its jobs move."""

    class BrokenRunner(ModelRunner):
        def _compute(self, batch):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = make_engine(runner=BrokenRunner)
    engine.add(make_sequence(prompts["b"]))

    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()
