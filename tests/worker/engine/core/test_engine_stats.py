"""Tests that the engine's statistics match the steps recorded by the model runner."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.step_timer import PHASES
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import InFlightStep, ModelRunner

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run

LENGTH = 12


class RecordingRunner(ModelRunner):
    """Records the sequences and positions computed in each step."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.steps: list[list[tuple[str, int, int]]] = []

    def launch(self, chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        self.steps.append([(chunk.sequence.seq_id, chunk.start, chunk.end) for chunk in chunks])
        return super().launch(chunks, after=after)


@pytest.fixture
def make_recording(make_engine: MakeEngine) -> MakeEngine:

    def make(**options: Any) -> Engine:
        return make_engine(
            runner=RecordingRunner, **{"eos_ids": frozenset(), "is_sharing_prefixes": False} | options
        )

    return make


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(5)
    return [random_prompt(rng, num_images=index % 3) for index in range(9)]


@pytest.mark.parametrize(("num_blocks", "is_preempting"), [(200, False), (26, True)])
def test_counters_match_the_computed_steps_sequences_and_tokens(
    make_recording: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: list[Prompt],
    num_blocks: int,
    is_preempting: bool,
) -> None:
    engine = make_recording(num_blocks=num_blocks)
    run(
        engine,
        [make_sequence(p, seq_id=str(index), max_new_tokens=LENGTH) for index, p in enumerate(prompts)],
    )
    runner, stats = engine._runner, engine.stats()
    assert isinstance(runner, RecordingRunner)
    steps = runner.steps
    lengths = {str(index): len(prompt.token_ids) for index, prompt in enumerate(prompts)}
    positions = [
        position < lengths[name]
        for step in steps
        for name, start, end in step
        for position in range(start, end)
    ]

    assert stats.num_steps_total == len(steps)
    assert stats.num_batched_sequences_total == sum(map(len, steps))
    assert stats.num_prefill_tokens_total == sum(positions)
    assert stats.num_decode_tokens_total == len(positions) - sum(positions)
    assert stats.num_generated_tokens_total == LENGTH * len(prompts)
    assert (stats.num_preemptions_total > 0) is is_preempting
    # Without preemption, no token is computed twice. The last token of an output is never computed.
    assert (stats.num_prefill_tokens_total > sum(lengths.values())) is is_preempting
    assert (stats.num_decode_tokens_total > (LENGTH - 1) * len(prompts)) is is_preempting
    assert stats.num_draft_tokens_total == stats.num_accepted_tokens_total == 0


def test_an_image_that_takes_several_steps_counts_once(
    make_recording: MakeEngine, make_sequence: MakeSequence, run: Run
) -> None:
    prompt = random_prompt(np.random.default_rng(6), num_images=1)
    engine = make_recording(max_num_sequences=2, max_batch_tokens=3)  # each image has four tokens
    run(engine, [make_sequence(prompt)])
    stats = engine.stats()
    assert (stats.num_image_cache_hits_total, stats.num_image_cache_misses_total) == (0, 1)

    run(engine, [make_sequence(prompt)])
    stats = engine.stats()
    assert (stats.num_image_cache_hits_total, stats.num_image_cache_misses_total) == (1, 1)
    assert (stats.num_encoded_images_total, stats.num_image_cache_evictions_total) == (1, 0)
    assert stats.image_cache_bytes > 0


def test_evicted_images_are_counted_and_their_bytes_subtracted(
    make_recording: MakeEngine, make_sequence: MakeSequence, run: Run
) -> None:
    rng = np.random.default_rng(6)
    image_prompts = [random_prompt(rng, num_images=1) for _ in range(3)]
    engine = make_recording()
    run(engine, [make_sequence(image_prompts[0])])
    size = engine.stats().image_cache_bytes

    engine = make_recording(encoder_cache_bytes=2 * size)
    for prompt in (*image_prompts, image_prompts[0]):
        run(engine, [make_sequence(prompt)])
    stats = engine.stats()
    assert (stats.num_image_cache_misses_total, stats.num_image_cache_evictions_total) == (4, 2)
    assert stats.image_cache_bytes == 2 * size


def test_phase_times_do_not_overlap(
    make_recording: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    engine = make_recording()
    text_prompts = [prompt for prompt in prompts if not prompt.pixels]
    began = time.perf_counter()
    run(engine, [make_sequence(text_prompts[0])])
    stats = engine.stats()
    assert stats.encode_s_total == 0
    run(engine, [make_sequence(random_prompt(np.random.default_rng(6), num_images=1))])
    stats = engine.stats()
    seconds = [getattr(stats, f"{phase}_s_total") for phase in PHASES]
    assert min(seconds) > 0
    assert sum(seconds) <= time.perf_counter() - began
