"""Tests of deadlines, of priorities, and of the latency of streams while long prompts are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llava_wire.messages.event import ErrorCode
from llava_worker.engine import Sequence
from llava_worker.engine.engine import Engine

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.outputs import num_computed_tokens


class Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def __call__(self) -> float:
        return self.time_s


@pytest.fixture
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(11)
    return [random_prompt(rng, num_images=1) for _ in range(3)]


def with_deadline(sequence: Sequence, deadline_s: float) -> Sequence:
    sequence.deadline_s = deadline_s
    return sequence


def test_only_a_sequence_past_its_deadline_ends_in_the_next_step(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    alone = run(make_engine(), [make_sequence(prompts[1], seq_id="other")])["other"]
    clock = Clock()
    engine = make_engine(now=clock, eos_ids=frozenset({2}))
    engine.add(with_deadline(make_sequence(prompts[0], seq_id="late", ignore_eos=True), 5.0))
    engine.add(with_deadline(make_sequence(prompts[1], seq_id="other"), 100.0))
    outputs = [output for _ in range(4) for output in engine.step()]
    num_before = sum(output.seq_id == "late" for output in outputs)
    assert num_before > 0

    clock.time_s = 5.0
    outputs += engine.step()
    engine.check()
    (final,) = [output for output in outputs if output.error is not None]
    assert final.seq_id == "late" and final.error is not None
    assert final.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert f"after {num_before} output tokens" in final.error.message

    while engine.num_sequences:
        outputs += engine.step()
    assert [output.token_id for output in outputs if output.seq_id == "other"] == alone
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_a_deadline_also_ends_a_waiting_sequence(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    clock = Clock()
    engine = make_engine(now=clock, max_num_sequences=1)
    engine.add(make_sequence(prompts[0], seq_id="first"))
    engine.add(with_deadline(make_sequence(prompts[1], seq_id="waiting"), 1.0))
    engine.step()
    clock.time_s = 2.0

    ended = [output.seq_id for output in engine.step() if output.error is not None]

    assert ended == ["waiting"]
    assert engine.stats().num_waiting == 0


def test_an_output_before_the_deadline_is_complete(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    whole = run(make_engine(), [make_sequence(prompts[0])])

    assert run(make_engine(now=Clock()), [with_deadline(make_sequence(prompts[0]), 0.1)]) == whole


@pytest.mark.parametrize("max_batch_tokens", [8, 16, 64])
def test_at_most_one_token_budget_is_computed_between_two_tokens_of_a_stream(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt], max_batch_tokens: int
) -> None:
    """This is true even if a long prompt with images arrives."""
    engine = make_engine(num_blocks=512, max_batch_tokens=max_batch_tokens, eos_ids=frozenset())
    for index, prompt in enumerate(prompts):
        engine.add(make_sequence(prompt, seq_id=str(index), max_new_tokens=60))
    streams, begun = {"0", "1", "2"}, set[str]()
    while begun != streams:
        begun |= {output.seq_id for output in engine.step()}
    long = random_prompt(np.random.default_rng(12), num_images=8, max_words=16)
    assert len(long.token_ids) > 64

    engine.add(make_sequence(long, seq_id="long", max_new_tokens=1))
    is_finished, num_steps = False, 0
    while not is_finished:
        before = num_computed_tokens(engine)
        seq_ids = {output.seq_id for output in engine.step()}
        num_steps += 1
        assert streams <= seq_ids
        assert num_computed_tokens(engine) - before <= max_batch_tokens
        is_finished = "long" in seq_ids
    assert num_steps >= len(long.token_ids) / max_batch_tokens


def steps_to_first_and_end(engine: Engine, seq_id: str) -> tuple[int, int]:
    first = count = 0
    while True:
        outputs = [output for output in engine.step() if output.seq_id == seq_id]
        engine.check()
        count += 1
        first = first or (count if outputs else 0)
        if any(output.is_final for output in outputs):
            return first, count


@pytest.mark.parametrize("num_blocks", [512, 48])
def test_a_high_priority_sequence_takes_at_most_twice_the_steps_under_load(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt], num_blocks: int
) -> None:
    """Depending on ``num_blocks``, there are too few sequence slots or too few blocks.

    Preemption must not change the outputs of other sequences.
    """
    rng = np.random.default_rng(13)
    flood = [random_prompt(rng, num_images=1) for _ in range(10)]
    options: dict[str, Any] = {"num_blocks": num_blocks, "max_num_sequences": 4, "eos_ids": frozenset()}

    def urgent() -> Sequence:
        sequence = make_sequence(prompts[0], seq_id="urgent", max_new_tokens=6)
        sequence.priority = 1
        return sequence

    def flooding() -> list[Sequence]:
        return [make_sequence(prompt, seq_id=str(n), max_new_tokens=20) for n, prompt in enumerate(flood)]

    plain, alone = run(make_engine(**options), flooding()), make_engine(**options)
    alone.add(urgent())
    first_alone, end_alone = steps_to_first_and_end(alone, "urgent")

    engine = make_engine(**options)
    output_ids: dict[str, list[int | None]] = {}
    for sequence in flooding():
        engine.add(sequence)
        output_ids[sequence.seq_id] = []
    for _ in range(5):
        outputs = engine.step()
        for output in outputs:
            output_ids[output.seq_id].append(output.token_id)
    engine.add(urgent())
    output_ids["urgent"] = []
    first = count = 0
    while engine.num_sequences:
        count += 1
        for output in engine.step():
            output_ids[output.seq_id].append(output.token_id)
            if output.seq_id == "urgent":
                first, end = first or count, count
        engine.check()

    assert first <= 2 * first_alone
    assert end <= 2 * end_alone
    assert engine.stats().num_preemptions_total > 0
    del output_ids["urgent"]
    assert output_ids == plain
