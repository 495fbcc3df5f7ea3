"""Async scheduling launches each step before the previous one is read, without changing any output."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import llava_worker
import msgspec
import numpy as np
import pytest
import torch
from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine.core.model_runner_output import ChunkResult
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import InFlightStep, ModelRunner
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine_thread import EngineThread

from tests.machine_speed import scaled
from tests.waiting import wait_until
from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.drafters import ScriptedDrafter
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.outputs import collect_outputs

TINY = Path(llava_worker.__file__).parent / "tiny"
LENGTH = 10
BIAS = ((40, 100.0), (41, 100.0), (42, 100.0))
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    {"num_logprobs": 2},
    {"stop_token_ids": (40,), "logit_bias": BIAS, "temperature": 1.0},  # the output ends at a random token
    {"min_tokens": 6, "stop_token_ids": (41,), "logit_bias": BIAS, "temperature": 1.0, "num_logprobs": 0},
    {"max_new_tokens": 3},
]


class LoggingRunner(ModelRunner):
    """Logs when each step is launched, whether it is launched early, and when it is read."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.log: list[str] = []
        self.num_launched = 0

    def launch(self, chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        number = self.num_launched
        self.num_launched += 1
        self.log.append(f"{'launch' if after is None else 'ahead'} {number}")
        step = super().launch(chunks, after=after)

        def read() -> list[ChunkResult]:
            self.log.append(f"read {number}")
            return step.read()

        return replace(step, read=read)


def log_of(engine: Engine) -> list[str]:
    runner = engine._runner
    assert isinstance(runner, LoggingRunner)
    return runner.log


def num_ahead(engine: Engine) -> int:
    return sum(line.startswith("ahead") for line in log_of(engine))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(17)
    return [random_prompt(rng, num_images=index % 3) for index in range(12)]


@pytest.fixture
def make_async(make_engine: MakeEngine) -> MakeEngine:
    return lambda **options: make_engine(runner=LoggingRunner, is_async=True, **options)


def test_a_step_is_launched_before_the_one_before_it_is_read(
    make_async: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    engine = make_async(max_batch_tokens=64, eos_ids=frozenset())
    collect_outputs(engine, make_sequence(prompts[0], max_new_tokens=4))

    # No step is launched after step 3, because max_new_tokens implies that this step is the last one.
    assert ", ".join(log_of(engine)) == "launch 0, ahead 1, read 0, ahead 2, read 1, ahead 3, read 2, read 3"


def test_a_synchronous_engine_reads_each_step_before_the_next(
    make_engine: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    engine = make_engine(runner=LoggingRunner, max_batch_tokens=64, eos_ids=frozenset())
    collect_outputs(engine, make_sequence(prompts[0], max_new_tokens=3))

    assert not engine.is_async
    assert log_of(engine) == ["launch 0", "read 0", "launch 1", "read 1", "launch 2", "read 2"]


@pytest.mark.parametrize(("num_blocks", "is_preempting"), [(200, False), (26, True)])
def test_async_outputs_and_counters_equal_those_of_a_synchronous_engine(
    make_engine: MakeEngine,
    make_async: MakeEngine,
    make_sequence: MakeSequence,
    prompts: list[Prompt],
    num_blocks: int,
    is_preempting: bool,
) -> None:
    def sequences() -> list[Sequence]:
        options: list[dict[str, Any]] = [
            {"max_new_tokens": LENGTH, "seed": i} | SAMPLINGS[i % len(SAMPLINGS)] for i in range(12)
        ]
        return [make_sequence(prompt, seq_id=str(i), **options[i]) for i, prompt in enumerate(prompts)]

    engine = make_async(num_blocks=num_blocks, max_num_sequences=12)
    plain = make_engine(num_blocks=num_blocks, max_num_sequences=12)
    outputs, expected = collect_outputs(engine, *sequences()), collect_outputs(plain, *sequences())

    assert {name: _comparable(each) for name, each in outputs.items()} == {
        name: _comparable(each) for name, each in expected.items()
    }
    for name in expected:
        for output, other in zip(outputs[name], expected[name], strict=True):
            if output.logprobs is not None and other.logprobs is not None:
                assert output.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)
    assert {len(each) for each in expected.values()} > {
        3,
        LENGTH,
    }  # some outputs ended at a token that could not be predicted
    assert num_ahead(engine) > 0
    assert engine.stats().num_generated_tokens_total == plain.stats().num_generated_tokens_total
    assert (engine.stats().num_preemptions_total > 0) is is_preempting
    if not is_preempting:
        assert engine.stats().num_decode_tokens_total == plain.stats().num_decode_tokens_total


def _comparable(outputs: list[StepOutput]) -> list[tuple[object, ...]]:
    """Return the outputs without log-probabilities, because their rounding depends on the batch."""
    return [(output.token_id, output.finish, output.error, output.logprobs is None) for output in outputs]


@pytest.mark.parametrize("reason", ["a penalty", "an embedding", "a draft", "a sequence waits for blocks"])
def test_a_step_that_depends_on_sampled_tokens_is_not_launched_ahead(
    make_async: MakeEngine, make_sequence: MakeSequence, reason: str
) -> None:
    drafter = ScriptedDrafter({"one": [0] * LENGTH}) if reason == "a draft" else None
    engine = make_async(num_blocks=6, max_batch_tokens=64, eos_ids=frozenset(), drafter=drafter)
    sequence = make_sequence(Prompt([1, 5, 6, 7, 8]), max_new_tokens=LENGTH)
    if reason == "a penalty":
        sequence.sampling = msgspec.structs.replace(sequence.sampling, repetition_penalty=1.2)
    if reason == "an embedding":
        sequence.is_embedding = True
    engine.add(sequence)
    if reason == "a sequence waits for blocks":  # there are not enough free blocks
        engine.add(make_sequence(Prompt([1, *range(20, 37)]), seq_id="large", max_new_tokens=2))
    engine.step()

    assert log_of(engine) == ["launch 0", "read 0"]


def test_a_step_that_would_preempt_a_sequence_is_not_launched_ahead(
    make_async: MakeEngine, make_sequence: MakeSequence
) -> None:
    engine = make_async(num_blocks=16, block_size=1, max_batch_tokens=64, eos_ids=frozenset())
    for name, token_id in (("one", 5), ("two", 6)):
        engine.add(make_sequence(Prompt([1, token_id, 7, 8]), seq_id=name, max_new_tokens=LENGTH))
    while engine.stats().num_free_blocks > 1:
        engine.step()
        engine.check()
    assert num_ahead(engine) > 0
    log_of(engine).clear()
    engine.step()

    assert [line.split()[0] for line in log_of(engine)] == ["read"]


def test_steps_are_launched_ahead_while_a_sequence_waits_for_a_slot(
    make_async: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    engine = make_async(max_batch_tokens=64, max_num_sequences=1, eos_ids=frozenset())
    for name in ("runs", "waits"):
        engine.add(make_sequence(prompts[0], seq_id=name, max_new_tokens=3))
    engine.step()
    engine.step()

    assert log_of(engine) == ["launch 0", "ahead 1", "read 0", "ahead 2", "read 1"]


def test_a_higher_priority_sequence_preempts_one_with_steps_launched_ahead(
    make_async: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    engine = make_async(max_batch_tokens=64, max_num_sequences=1, eos_ids=frozenset())
    engine.add(make_sequence(prompts[0], seq_id="runs", max_new_tokens=LENGTH))
    engine.step()
    urgent = make_sequence(prompts[1], seq_id="urgent", max_new_tokens=2)
    urgent.priority = 1
    engine.add(urgent)

    assert [output.seq_id for _ in range(3) for output in engine.step()] == ["runs", "urgent", "urgent"]


def test_a_sequence_aborted_with_a_token_in_flight_gets_no_more_outputs(
    make_async: MakeEngine,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
) -> None:
    engine = make_async(max_batch_tokens=128, eos_ids=frozenset())
    expected = run(make_engine(eos_ids=frozenset()), [make_sequence(prompts[1])])["one"]
    for name, prompt in zip(("gone", "stays"), prompts, strict=False):
        engine.add(make_sequence(prompt, seq_id=name))
    outputs = engine.step()
    assert {output.seq_id for output in outputs} == {"gone", "stays"}
    assert log_of(engine)[-2:] == ["ahead 1", "read 0"]

    engine.abort("gone")
    engine.check()
    num_held = engine.stats().num_blocks - engine.stats().num_free_blocks
    outputs += engine.step()  # this step contains a row for "gone"
    while engine.num_sequences:
        outputs += engine.step()
        engine.check()

    assert num_held <= -(-(len(prompts[1].token_ids) + 3) // 4)  # the blocks of "gone" were freed immediately
    assert [output.token_id for output in outputs if output.seq_id == "stays"] == expected
    assert sum(output.seq_id == "gone" for output in outputs) == 1


def test_a_step_without_live_sequences_is_not_read(
    make_async: MakeEngine, make_sequence: MakeSequence, prompts: list[Prompt]
) -> None:
    engine = make_async(max_batch_tokens=64, eos_ids=frozenset())
    engine.add(make_sequence(prompts[0], seq_id="gone"))
    engine.step()
    engine.abort("gone")
    engine.check()
    assert engine.step() == []
    engine.add(make_sequence(prompts[1], seq_id="next"))

    assert [output.seq_id for output in engine.step()] == ["next"]
    assert "read 1" not in log_of(engine)


def test_the_extra_row_of_a_finished_sequence_is_not_shared(
    make_async: MakeEngine,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
) -> None:
    """The second turn starts right after the first output, where the extra row has written to the cache."""
    plain = make_engine(eos_ids=frozenset())
    first_output = run(plain, [make_sequence(prompts[0], max_new_tokens=9)])["one"]
    for length in range(2, 9):  # the output ends at every position in a block
        engine = make_async(eos_ids=frozenset({first_output[length - 1]}), max_batch_tokens=64)
        first = run(engine, [make_sequence(prompts[0])])["one"]
        turn = replace(prompts[0], token_ids=[*prompts[0].token_ids, *first, 9, 8, 7])
        again = make_sequence(turn, ignore_eos=True, max_new_tokens=5)
        (second,) = collect_outputs(engine, again).values()

        assert num_ahead(engine) > 0
        assert second[0].num_cached_tokens == len(turn.token_ids) - 4
        fresh = make_sequence(turn, ignore_eos=True, max_new_tokens=5)
        assert [output.token_id for output in second] == run(make_engine(), [fresh])["one"]


def test_a_step_ahead_that_runs_out_of_memory_is_launched_later(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class OutOfMemoryRunner(LoggingRunner):
        def launch(self, chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
            step = super().launch(chunks, after=after)
            if after is not None and len(self.log) % 3:  # keys and values have already been written
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step

    def outputs(**options: Any) -> dict[str, list[int]]:
        sequences = [make_sequence(prompt, seq_id=str(index)) for index, prompt in enumerate(prompts)]
        return run(make_engine(num_blocks=200, max_batch_tokens=64, **options), sequences)

    with caplog.at_level(logging.WARNING):
        assert outputs(runner=OutOfMemoryRunner, is_async=True) == outputs()
    assert "out of memory while launching the next step early" in caplog.text


def test_the_output_of_a_stopped_engine_thread_is_resumed_exactly(
    make_async: MakeEngine,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
) -> None:
    expected = run(make_engine(eos_ids=frozenset()), [make_sequence(prompts[0])])["one"]
    engine = make_async(eos_ids=frozenset(), max_batch_tokens=64)
    received: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    has_failed = threading.Event()

    def take(outputs: list[StepOutput]) -> None:
        for output in outputs:
            received.put(output)
        if received.qsize() == 3:
            thread._stopped.wait(scaled(10.0))

    thread = EngineThread(engine, on_outputs=take, on_failure=has_failed.set, hang_timeout_s=scaled(60.0))
    thread.start()
    thread.add(make_sequence(prompts[0]))
    wait_until(lambda: received.qsize() == 3 or has_failed.is_set())

    assert thread.stop(scaled(10.0)) and not has_failed.is_set()
    assert log_of(engine)[-2:] == ["ahead 3", "read 2"]  # the token of step 3 is in flight and is never read
    first = [received.get().token_id for _ in range(received.qsize())]
    assert first == expected[:3]
    rest = make_sequence(prompts[0], output_ids=first)
    assert run(make_engine(eos_ids=frozenset()), [rest])["one"] == expected


def test_async_scheduling_is_not_used_on_a_cpu() -> None:
    engine, _ = build_engine(
        EngineConfig(TINY, device="cpu", kv_cache_bytes=32 << 20, use_async_scheduling=True)
    )

    assert not engine.is_async
