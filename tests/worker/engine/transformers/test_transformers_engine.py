"""Memory limits and errors of the transformers engine. The contract suite tests everything else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_worker.engine import SequenceRejected, StepOutput
from llava_worker.engine.transformers.engine import TransformersEngine
from llava_worker.engine.transformers.runner import SequenceGroup, TransformersRunner

from tests.worker.engine.transformers.families import write_family
from tests.worker.engine.transformers.served_family import ServedFamily, make_questions

QUESTIONS = make_questions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("gemma3", tmp_path_factory.mktemp("gemma3") / "model")  # has sliding windows


@pytest.fixture(scope="module")
def family(folder: Path) -> ServedFamily:
    return ServedFamily(folder)


@pytest.fixture(scope="module")
def expected(family: ServedFamily) -> dict[str, list[int]]:
    return run_all(family)


def run_all(family: ServedFamily, *, max_tokens: int = 40) -> dict[str, list[int]]:
    return family.run(
        *(
            family.sequence(question, seq_id=str(index), max_tokens=max_tokens)
            for index, question in enumerate(QUESTIONS)
        )
    )


def with_engine(
    family: ServedFamily, runner: TransformersRunner | None = None, **options: Any
) -> ServedFamily:
    """Return the family with another engine that uses the same model."""
    engine = family.model.engine
    assert isinstance(engine, TransformersEngine)
    defaults: dict[str, Any] = {
        "image_token_id": engine._image_token_id,
        "vocab_size": engine._vocab_size,
        "eos_ids": engine._eos_ids,
        "context_length": 300,
        "max_num_sequences": 8,
        "max_cached_tokens": 4096,
        "is_grouped": True,
    }
    other = object.__new__(ServedFamily)
    other.__dict__.update(family.__dict__)
    new = TransformersEngine(runner or engine._runner, engine._processor, **defaults | options)
    other.model = dataclasses.replace(family.model, engine=new)
    return other


@pytest.mark.parametrize("is_grouped", [True, False])
def test_sequences_are_preempted_if_their_caches_exceed_the_limit(
    family: ServedFamily, expected: dict[str, list[int]], is_grouped: bool
) -> None:
    limited = with_engine(family, max_cached_tokens=300, is_grouped=is_grouped)

    assert run_all(limited) == expected

    stats = limited.model.engine.stats()
    assert stats.num_preemptions_total > 0
    assert stats.num_free_blocks == stats.num_blocks


class FailingRunner(TransformersRunner):
    """A runner whose passes run out of memory if they have at least ``max_rows`` rows."""

    max_rows = 3

    def decode(self, group: SequenceGroup, token_ids: Any) -> torch.Tensor:
        logits = super().decode(group, token_ids)
        if len(token_ids) >= self.max_rows:
            raise torch.OutOfMemoryError("out of memory")
        return logits


def test_a_group_that_runs_out_of_memory_is_recomputed_in_smaller_groups(
    family: ServedFamily, expected: dict[str, list[int]]
) -> None:
    engine = family.model.engine
    assert isinstance(engine, TransformersEngine)
    failing = with_engine(family, FailingRunner(engine._runner.model), context_length=120)

    assert run_all(failing) == expected


def test_a_single_sequence_that_runs_out_of_memory_fails(family: ServedFamily) -> None:
    engine = family.model.engine
    assert isinstance(engine, TransformersEngine)
    runner = FailingRunner(engine._runner.model)
    runner.max_rows = 1
    failing = with_engine(family, runner).model.engine
    failing.add(family.sequence(QUESTIONS[0]))

    outputs: list[StepOutput] = []
    while failing.num_sequences:
        outputs += failing.step()

    assert outputs[-1].error is not None
    assert outputs[-1].error.code is ErrorCode.INSUFFICIENT_MEMORY


def test_pixel_data_of_the_wrong_size_is_rejected(family: ServedFamily) -> None:
    sequence = family.sequence(QUESTIONS[0])
    sequence.pixels = [bytes(sequence.pixels[0])[:-3]]
    with pytest.raises(SequenceRejected, match="is not the size of an RGB image of 70x40 pixels"):
        family.model.engine.add(sequence)


def test_a_prompt_without_the_tokens_of_its_image_ends_with_an_error(family: ServedFamily) -> None:
    sequence = family.sequence(QUESTIONS[0])
    span = sequence.images[0]
    sequence.prompt_ids[span.start : span.end] = [5] * span.length
    engine = family.model.engine
    engine.add(sequence)
    (output,) = engine.step()
    assert output.error is not None
    assert "The prompt has 0 image tokens" in output.error.message
    assert engine.num_sequences == 0


def test_a_cache_that_is_smaller_than_a_context_is_an_error(family: ServedFamily) -> None:
    with pytest.raises(ValueError, match="A context of 300 tokens does not fit in 299 cached tokens"):
        with_engine(family, max_cached_tokens=299)
