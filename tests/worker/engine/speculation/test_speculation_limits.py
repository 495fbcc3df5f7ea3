"""Tests of what limits drafts: the end of the output, the token budget, free blocks and NaN logits."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Final, FinishReason
from llava_wire.messages.job import Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import EngineStats, Sequence, StepOutput
from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.scheduler import Chunk, Scheduler
from llava_worker.engine.engine import Engine
from llava_worker.engine.speculation.drafter import MAX_DRAFTS
from llava_worker.engine.speculation.speculative_decoding import MAX_DRAFTS_PER_STEP, SpeculativeDecoding
from llava_worker.job_output import JobOutput
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.drafters import FixedPriceDrafter, ScriptedDrafter
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.outputs import collect_outputs

LENGTH = 20


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return random_prompt(np.random.default_rng(21), num_images=1)


@pytest.fixture(scope="module")
def expected_ids(make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompt: Prompt) -> list[int]:
    """The output with greedy sampling and without an end token."""
    return run(make_engine(eos_ids=frozenset()), [make_sequence(prompt, max_new_tokens=LENGTH)])["one"]


def outputs_of(engine: Engine, sequence: Sequence) -> list[StepOutput]:
    return collect_outputs(engine, sequence)[sequence.seq_id]


def ending(
    end: str, prompt: Prompt, expected_ids: list[int], cut: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the engine options and the sequence options for an output that ends at token ``cut``."""
    engine_options: dict[str, Any] = {"eos_ids": frozenset()}
    options: dict[str, Any] = {"max_new_tokens": LENGTH}
    if end == "eos":
        engine_options["eos_ids"] = frozenset({expected_ids[cut]})
    elif end == "stop token":
        options["stop_token_ids"] = (expected_ids[cut],)
    elif end == "max_new_tokens":
        options["max_new_tokens"] = cut
    elif end == "context":
        engine_options["context_length"] = len(prompt.token_ids) + cut
    elif end == "min_tokens":
        options |= {"stop_token_ids": (expected_ids[cut],), "min_tokens": cut + 2}
    return engine_options, options


@pytest.mark.parametrize("end", ["eos", "stop token", "max_new_tokens", "context", "min_tokens"])
def test_an_output_ends_at_the_same_token_for_the_same_reason(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt, expected_ids: list[int], end: str
) -> None:
    """The output ends at different positions within the drafts of a step."""
    for cut, wrong_every in product((2, 3, 6, 9, 10, 11), (None, 1, 3)):
        engine_options, options = ending(end, prompt, expected_ids, cut)
        plain = outputs_of(make_engine(**engine_options), make_sequence(prompt, **options))
        drafter = ScriptedDrafter({"one": expected_ids}, wrong_every=wrong_every)
        engine = make_engine(drafter=drafter, max_batch_tokens=64, **engine_options)
        drafted = outputs_of(engine, make_sequence(prompt, **options))

        assert drafted == plain, (cut, wrong_every)
        assert [output.is_final for output in drafted] == [False] * (len(drafted) - 1) + [True]
        assert engine.stats().num_generated_tokens_total == len(drafted)


def test_no_more_tokens_are_drafted_than_the_output_can_have(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt, expected_ids: list[int]
) -> None:
    for limit in range(2, 8):
        drafter = ScriptedDrafter({"one": expected_ids})
        engine = make_engine(drafter=drafter, eos_ids=frozenset(), max_batch_tokens=64)
        outputs_of(engine, make_sequence(prompt, max_new_tokens=limit))

        assert [drafted for drafted, _ in drafter.acceptances] == ([limit - 2] if limit > 2 else [])


@pytest.mark.parametrize("is_async", [False, True])
def test_the_drafter_receives_the_duration_of_decode_only_steps(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    prompt: Prompt,
    expected_ids: list[int],
    is_async: bool,
) -> None:
    drafter = ScriptedDrafter({"one": expected_ids[:9]})  # after these tokens, no drafts are proposed
    engine = make_engine(eos_ids=frozenset(), drafter=drafter, is_async=is_async)
    outputs_of(engine, make_sequence(prompt, max_new_tokens=LENGTH))

    assert [num_tokens for num_tokens, _ in drafter.step_times] == [9] + [1] * (LENGTH - 10)
    assert all(seconds > 0 for _, seconds in drafter.step_times)


def test_a_stop_string_within_accepted_drafts_ends_the_text_at_the_same_position(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    """Tokens 97 to 122 are letters. Letters after the stop string are not sent."""
    letters = tuple((token_id, 100.0) for token_id in range(97, 123))
    options: dict[str, Any] = {
        "max_new_tokens": LENGTH,
        "logit_bias": letters,
        "temperature": 1.0,
        "seed": 5,
    }
    plain = outputs_of(make_engine(eos_ids=frozenset()), make_sequence(prompt, **options))
    token_ids = [output.token_id for output in plain if output.token_id is not None]
    text = bytes(token_ids).decode()

    def sent(outputs: list[StepOutput]) -> tuple[tuple[int, ...], str, Final | None]:
        sampling = SamplingParams(seed=1, stop=(text[6:9],))
        messages = (Message("user", ("Hi",)),)
        job = Job(job_id="job", model="m", tenant="t", messages=messages, sampling=sampling, cost=1.0)
        job_output = JobOutput(Assignment(job, "one", (), "", {}), ByteTokenizer())
        for output in outputs:
            job_output.process(output)
        event = job_output.next_event()
        assert event is not None
        return event.token_ids, event.text, event.final

    engine = make_engine(
        eos_ids=frozenset(), max_batch_tokens=64, drafter=ScriptedDrafter({"one": token_ids})
    )
    drafted = sent(outputs_of(engine, make_sequence(prompt, **options)))

    assert drafted == sent(plain)
    assert drafted[:2] == (tuple(token_ids[:9]), text[:6])
    assert drafted[2] is not None and drafted[2].reason is FinishReason.STOP
    assert engine.stats().num_accepted_tokens_total > 10


class Decoding:
    """A scheduler with ``count`` decoding sequences. Each has ``num_left`` free slots in its last block."""

    def __init__(self, count: int, *, num_blocks: int = 100, num_left: int = 0, **limits: int) -> None:
        self.blocks = BlockManager(num_blocks, 4, is_sharing=False)
        options: dict[str, Any] = {"max_batch_tokens": 64} | limits
        self.scheduler = Scheduler(self.blocks, max_num_sequences=10, **options)
        self.drafter = ScriptedDrafter({str(n): [5] * 90 for n in range(count)})
        self.speculation = SpeculativeDecoding(self.drafter, self.blocks, context_length=400, **options)
        for n in range(count):
            self.add(str(n), 8 - num_left - 1)
        for chunk in self.scheduler.schedule().chunks:
            chunk.sequence.num_computed = chunk.end
            chunk.sequence.output_ids.append(5)

    def add(self, name: str, num_tokens: int) -> None:
        self.scheduler.add(Sequence(seq_id=name, prompt_ids=[1] * num_tokens, max_new_tokens=99))

    def step(self) -> list[Chunk]:
        num_spare = len(self.scheduler.running)
        chunks = self.speculation.add_drafts(self.scheduler.schedule().chunks, num_spare=num_spare)
        self.blocks.check(self.scheduler)
        for chunk in chunks:
            assert len(chunk.sequence.block_table) * 4 >= chunk.end + len(chunk.drafts)
        return chunks


def lengths(chunks: list[Chunk]) -> list[int]:
    return [len(chunk.drafts) for chunk in chunks]


def test_all_sequences_get_drafts_if_there_is_room() -> None:
    decoding = Decoding(2)

    assert lengths(decoding.step()) == [MAX_DRAFTS] * 2
    assert decoding.drafter.num_rows == [2, 2]


def test_a_step_has_a_maximum_number_of_drafts() -> None:
    assert sum(lengths(Decoding(10, num_blocks=200, max_batch_tokens=500).step())) == MAX_DRAFTS_PER_STEP


def test_drafts_use_the_token_budget_that_prompts_leave() -> None:
    decoding = Decoding(2)
    decoding.add("long", 58)

    assert lengths(decoding.step()) == [4, 0, 0]

    decoding.add("longer", 100)
    decoding.scheduler.running[-1].num_computed = 58
    assert sum(lengths(decoding.step())) == 0


def test_drafts_do_not_use_the_spare_blocks() -> None:
    # Each sequence has two blocks. Its drafts could use one or two more blocks, but two must remain free.
    assert lengths(Decoding(2, num_blocks=6, num_left=3).step()) == [3, 3]
    assert lengths(Decoding(2, num_blocks=6).step()) == [0, 0]
    assert lengths(Decoding(2, num_blocks=9, num_left=3).step()) == [MAX_DRAFTS, 3]
    assert lengths(Decoding(2, num_blocks=10).step()) == [MAX_DRAFTS] * 2


@pytest.mark.parametrize("wrong_every", [None, 1, 3])
def test_no_block_is_held_for_drafts_after_a_step(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    prompt: Prompt,
    expected_ids: list[int],
    wrong_every: int | None,
) -> None:
    drafter = ScriptedDrafter({"one": expected_ids}, wrong_every=wrong_every)
    engine = make_engine(
        drafter=drafter, eos_ids=frozenset(), block_size=1, num_blocks=120, max_batch_tokens=64
    )
    engine.add(sequence := make_sequence(prompt, max_new_tokens=LENGTH))
    while engine.step() and engine.num_sequences:
        engine.check()
        assert engine.stats().num_free_blocks >= 120 - sequence.num_tokens

    assert drafter.acceptances


def test_nan_logits_after_a_correct_draft_fail_only_that_sequence(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    model: Llava,
    prompt: Prompt,
    expected_ids: list[int],
) -> None:
    """The output may end a few tokens earlier than without drafts, but all of its tokens are the same."""
    last, other = expected_ids[6], random_prompt(np.random.default_rng(22), num_images=1)
    expected = run(make_engine(eos_ids=frozenset()), [make_sequence(other, seq_id="other")])["other"]
    assert last not in [*prompt.token_ids, *expected_ids[:6], *other.token_ids, *expected]
    healthy = model.language_model.embed_tokens.weight[last].clone()
    model.language_model.embed_tokens.weight[last] = torch.nan
    try:
        drafter = ScriptedDrafter({"one": expected_ids, "other": expected})
        engine = make_engine(drafter=drafter, eos_ids=frozenset(), max_batch_tokens=64)
        sequences = make_sequence(other, seq_id="other"), make_sequence(prompt, max_new_tokens=LENGTH)
        outputs = collect_outputs(engine, *sequences)
    finally:
        model.language_model.embed_tokens.weight[last] = healthy

    *sampled, final = outputs["one"]
    assert [output.token_id for output in sampled] == expected_ids[: len(sampled)]
    assert final.error is not None
    assert final.error.message == f"The model produced NaN or infinity after {len(sampled)} output tokens."
    assert [output.token_id for output in outputs["other"]] == expected


def test_repetitive_output_is_drafted_and_random_output_is_not(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    def stats_of(**sampling: Any) -> EngineStats:
        engine = make_engine(drafter=FixedPriceDrafter(), eos_ids=frozenset(), max_batch_tokens=64)
        outputs_of(engine, make_sequence(prompt, max_new_tokens=200, **sampling))
        return engine.stats()

    # One output repeats a single token. The other output consists of tokens drawn at random from a set of
    # thirty, so repetitions do not predict anything.
    copying = stats_of(logit_bias=((40, 100.0),))
    chatting = stats_of(logit_bias=tuple((token_id, 100.0) for token_id in range(40, 70)), temperature=50.0)

    assert copying.num_accepted_tokens_total > 100
    assert copying.num_steps_total < 100
    assert 0 < chatting.num_draft_tokens_total < 40
    assert chatting.num_steps_total > 190
