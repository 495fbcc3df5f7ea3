"""Tests of two ranks with an adapter and an int8 KV cache, and with bf16.

A logit bias forces every output token, so that all logits can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import random_prompt, write_checkpoint
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.parallel.two_ranks import RecordingRunner, TwoRanks, load, logits_of
from tests.worker.layouts import write_adapter, write_original

FORCED = ((7, 100.0),)

ComputeLogits = Callable[..., torch.Tensor]


@pytest.fixture
def compute_logits(make_engine: MakeEngine, make_sequence: MakeSequence) -> ComputeLogits:
    """Return a function that computes all sampled logits for a few chunked prompts, one with images."""
    rng = np.random.default_rng(23)
    prompts = {name: random_prompt(rng, num_images=name == "a") for name in "abc"}

    def logits(model: Llava, **options: Any) -> torch.Tensor:
        engine = make_engine(over=model, runner=RecordingRunner, num_blocks=96, **options)
        sequences = [
            make_sequence(prompt, seq_id=name, ignore_eos=True, logit_bias=FORCED)
            for name, prompt in prompts.items()
        ]
        recorded = logits_of(engine, sequences)
        return torch.cat([recorded[name] for name in prompts])

    return logits


@contextmanager
def two_ranks(folder: Path, **options: Any) -> Iterator[Llava]:
    ranks = TwoRanks(folder, **options)
    try:
        yield ranks.model
    finally:
        ranks.group.close()
    assert not ranks.lost.is_set()


def rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


def test_two_ranks_with_an_adapter_and_int8_cache_give_the_logits_of_one_process(
    compute_logits: ComputeLogits, tmp_path: Path
) -> None:
    """The summation order can change a quantized value by one, so 10% of the int8 error is allowed."""
    write_checkpoint(tmp_path)
    base = write_original(tmp_path, tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter")
    whole = load(adapter, base=base)
    one = compute_logits(whole, is_int8=True)

    with two_ranks(adapter, base=base, kv_cache_dtype="int8") as model:
        two = compute_logits(model, is_int8=True)

    int8_error = rms(one - compute_logits(whole))
    assert int8_error > 0
    assert rms(two - one) < int8_error / 10
    assert (
        rms(one - compute_logits(load(base), is_int8=True)) > 10 * int8_error
    )  # the effect of the adapter is much larger


def test_bf16_on_two_ranks_is_as_close_to_fp32_as_on_one(
    compute_logits: ComputeLogits, tmp_path: Path
) -> None:
    """Each rank rounds its partial sums, so the last bits differ, but by less than the bf16 error."""
    write_checkpoint(tmp_path)
    exact, one = compute_logits(load(tmp_path)), compute_logits(load(tmp_path, precision="bf16"))

    with two_ranks(tmp_path, precision="bf16") as model:
        two = compute_logits(model)

    bf16_error = rms(one - exact)
    assert bf16_error > 0
    assert rms(two - exact) < 1.25 * bf16_error
    assert rms(two - one) < bf16_error
