"""Tests that for every model class and with prefix caching, all logits of the engine match transformers.

A run consists of two waves of prompts. The second wave contains the longest prompt of the first wave and two
variants of it: one that differs from a random position onward, and one that has the same text but different
images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine import Sequence
from llava_worker.engine.engine import Engine

from tests.worker.checkpoints import IMAGE_TOKEN, Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.logit_recorder import RecordingLlava, RecordingRunner, load_recording, recorder_of
from tests.worker.engine.seeds import for_each_seed
from tests.worker.family import CLASSES, Member, make_member

NUM_SIZES = 4  # number of model sizes per class
NUM_OUTPUT_TOKENS = 6
# Image tokens are excluded, because the reference would treat an image token in the output as another image.
OPTIONS: dict[str, Any] = {
    "max_new_tokens": NUM_OUTPUT_TOKENS,
    "ignore_eos": True,
    "logit_bias": ((IMAGE_TOKEN, -100.0),),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=CLASSES)
def member_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[Member, RecordingLlava]]:
    """Return a function that creates and loads a model of one class.

    Its argument selects the size.
    """

    @cache
    def make(number: int) -> tuple[Member, RecordingLlava]:
        member = make_member(request.param, number, tmp_path_factory.mktemp("member"))
        return member, load_recording(member.folder)

    return make


def draw_waves(rng: np.random.Generator, member: Member) -> tuple[list[Prompt], list[Prompt]]:
    counts = [int(count) for count in rng.permutation(4)][: int(rng.integers(2, 5))]
    first = [random_prompt(rng, num_images=count, layout=member.image_layout) for count in (1, *counts)]
    longest = max(first, key=lambda prompt: len(prompt.token_ids))
    others = [rng.integers(0, 256, tiles.shape, dtype=np.uint8) for tiles in longest.pixels]
    return first, [longest, branch(rng, longest), dataclasses.replace(longest, pixels=others)]


def branch(rng: np.random.Generator, prompt: Prompt) -> Prompt:
    """Return a prompt that equals ``prompt`` up to a random position outside images and then differs."""
    ends = [start + length for start, length in zip(prompt.image_starts, prompt.lengths, strict=True)]
    cut = int(rng.choice([1, *prompt.image_starts, *ends, len(prompt.token_ids) - 1]))
    kept = sum(end <= cut for end in ends)
    new_ids = rng.integers(3, 100, int(rng.integers(1, 9))).tolist()
    return Prompt(
        prompt.token_ids[:cut] + new_ids,
        prompt.image_starts[:kept],
        prompt.pixels[:kept],
        prompt.lengths[:kept],
        prompt.sizes[:kept],
    )


def drive(engine: Engine, sequences: list[Sequence]) -> None:
    """Run the sequences. The remaining sequences are added once the first one is decoding."""
    engine.add(sequences[0])
    while engine.num_sequences and not sequences[0].output_ids:
        engine.step()
    for sequence in sequences[1:]:
        engine.add(sequence)
    while engine.num_sequences:
        outputs = engine.step()
        assert all(output.error is None for output in outputs)
        engine.check()


def test_every_logit_of_a_run_equals_that_of_transformers(
    member_of: Callable[[int], tuple[Member, RecordingLlava]],
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    pytestconfig: pytest.Config,
) -> None:
    """Covers chunked prefill, mixed batches, cached prefixes, and recomputation after preemption."""

    def run_workload(seed: int) -> None:
        rng = np.random.default_rng(seed)
        is_roomy = seed // NUM_SIZES % 2 == 0
        member, model = member_of(seed % NUM_SIZES)
        waves = draw_waves(rng, member)
        longest = max(len(prompt.token_ids) for prompt in waves[0])
        block_size = int(rng.integers(1, 5))
        room = 10 * longest if is_roomy else int(rng.integers(longest, 2 * longest))
        room += NUM_OUTPUT_TOKENS + 9  # prompts in the second wave can be longer
        engine = make_engine(
            over=model,
            runner=RecordingRunner,
            block_size=block_size,
            num_blocks=room // block_size + 2,
            max_num_sequences=4,
            max_batch_tokens=int(rng.integers(4, min(longest - 1, 48))),  # all prompts share the first token
            encoder_cache_bytes=int(rng.integers(0, 1 << 16)),
        )
        requests: list[tuple[Prompt, Sequence]] = []
        for number, wave in enumerate(waves):
            batch = [
                (prompt, make_sequence(prompt, seq_id=f"{number}.{index}", **OPTIONS))
                for index, prompt in enumerate(wave)
            ]
            requests += batch
            drive(engine, [sequence for _, sequence in batch])

        assert_logits_equal_the_reference(member, recorder_of(engine), requests)
        assert "chunked" in recorder_of(engine).kinds
        if is_roomy:
            assert "mixed" in recorder_of(engine).kinds
            assert engine.stats().num_cached_tokens_total >= longest // block_size * block_size - block_size

    for_each_seed(pytestconfig, run_workload, num_seeds=30)


def assert_logits_equal_the_reference(
    member: Member, runner: RecordingRunner, requests: list[tuple[Prompt, Sequence]]
) -> None:
    expected = {}
    for prompt, sequence in requests:
        whole = dataclasses.replace(prompt, token_ids=prompt.token_ids + sequence.output_ids)
        logits = expected[sequence.seq_id] = member.logits_of(whole)
        before = logits[len(prompt.token_ids) - 1 : -1].index_fill(1, torch.tensor(IMAGE_TOKEN), -torch.inf)
        sampled = before.gather(1, torch.tensor(sequence.output_ids)[:, None])[:, 0]
        assert (before.amax(-1) - sampled).max() <= 2 * TOLERANCE  # sampling is greedy, but ties are allowed
    computed = torch.stack([row for _, _, row in runner.computed])
    reference = torch.stack([expected[seq_id][at] for seq_id, at, _ in runner.computed])
    torch.testing.assert_close(computed, reference, atol=TOLERANCE, rtol=0)
    last_positions = {(sequence.seq_id, sequence.num_tokens - 2) for _, sequence in requests}
    assert last_positions <= {(seq_id, at) for seq_id, at, _ in runner.computed}
