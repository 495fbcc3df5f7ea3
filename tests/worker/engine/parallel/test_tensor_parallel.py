"""Tests that two ranks, connected by gloo, compute the same logits as a single process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine import Sequence
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import PHI, Prompt, random_prompt, write_checkpoint
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.parallel.two_ranks import RecordingRunner, TwoRanks, load, logits_of

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}  # the order of summation in fp32 differs

# These models cover grouped-query attention, biases (which exactly one rank must add), and a sliding window.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 11},
    "phi": PHI,
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divided")
    write_checkpoint(folder, text=KINDS[request.param])
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Iterator[TwoRanks]:
    ranks = TwoRanks(folder)
    yield ranks
    ranks.group.close()
    assert not ranks.lost.is_set()


@pytest.fixture
def prompts() -> dict[str, Prompt]:
    rng = np.random.default_rng(23)
    return {name: random_prompt(rng, num_images=name in "ac") for name in "abcde"}


def test_two_ranks_give_the_logits_of_one_process(
    folder: Path,
    ranks: TwoRanks,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    prompts: dict[str, Prompt],
) -> None:
    """Covers chunked prefill, batched decoding, images and, with two ranks, steps launched early.

    The second run uses cached prefixes.
    """

    def sequences() -> list[Sequence]:
        return [make_sequence(prompt, seq_id=name, ignore_eos=True) for name, prompt in prompts.items()]

    whole = load(folder)
    engines = [
        make_engine(over=model, runner=RecordingRunner, num_blocks=96, is_async=model is ranks.model)
        for model in (whole, ranks.model)
    ]
    for _ in range(2):
        one, two = (logits_of(engine, sequences()) for engine in engines)
        assert one.keys() == two.keys()
        for name, logits in one.items():
            assert len(logits) == 12
            torch.testing.assert_close(two[name], logits, **TOLERANCE)
    assert engines[1].stats().num_cached_tokens_total > 0


def test_block_copies_and_cache_replacements_reach_the_other_rank(
    ranks: TwoRanks,
    folder: Path,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prompts differ in the middle of a block, so the other rank has to copy rows of the block too."""
    base = random_prompt(np.random.default_rng(5), num_images=0)
    prompts = [Prompt([*base.token_ids, *ending]) for ending in ([3, 4], [5, 6, 7], [3, 9])]

    def outputs(model: Llava) -> list[dict[str, list[int]]]:
        engine = make_engine(over=model, num_blocks=48)
        return [
            run(engine, [make_sequence(prompt, seq_id=str(i), ignore_eos=True)])
            for i, prompt in enumerate(prompts)
        ]

    copied: list[int] = []
    send_copy = ranks.group.ranks.send_copy

    def record_copy(first: int, target: int, num_rows: int) -> None:
        copied.append(num_rows)
        send_copy(first, target, num_rows)

    monkeypatch.setattr(ranks.group.ranks, "send_copy", record_copy)

    assert outputs(ranks.model) == outputs(load(folder))
    assert copied
