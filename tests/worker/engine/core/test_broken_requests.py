"""Tests that a failed request does not affect other requests and leaves nothing in the caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine import SequenceRejected, StepOutput
from llava_worker.engine.engine import Engine
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run

Outputs = dict[str, list[StepOutput]]


@pytest.fixture
def neighbors() -> dict[str, Prompt]:
    rng = np.random.default_rng(21)
    return {name: random_prompt(rng, num_images=1) for name in "abc"}


@pytest.fixture
def expected_outputs(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, neighbors: dict[str, Prompt]
) -> dict[str, list[int]]:
    """The outputs of the neighbors if no request fails."""
    return {name: run(make_engine(), [make_sequence(each)])["one"] for name, each in neighbors.items()}


def drain(engine: Engine) -> Outputs:
    """Run the engine until all sequences have finished and return the outputs."""
    outputs: Outputs = {}
    while engine.num_sequences:
        for output in engine.step():
            outputs.setdefault(output.seq_id, []).append(output)
        engine.check()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return outputs


def tokens(outputs: Outputs, *names: str) -> dict[str, list[int | None]]:
    return {name: [output.token_id for output in outputs[name]] for name in names}


@contextmanager
def poisoned(model: Llava, token_id: int) -> Iterator[None]:
    """Replace the embedding of one token with NaN, so that sequences containing this token get NaN logits."""
    weight = model.language_model.embed_tokens.weight
    healthy = weight[token_id].clone()
    weight[token_id] = torch.nan
    try:
        yield
    finally:
        weight[token_id] = healthy


def test_a_sequence_that_fails_midway_does_not_affect_other_sequences(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    model: Llava,
    neighbors: dict[str, Prompt],
    expected_outputs: dict[str, list[int]],
) -> None:
    rng = np.random.default_rng(22)
    used = {token_id for output_ids in expected_outputs.values() for token_id in output_ids}
    used |= {token_id for each in neighbors.values() for token_id in each.token_ids}
    while True:  # find a prompt whose output contains a token that occurs in no other sequence
        prompt = random_prompt(rng, num_images=1)
        whole = run(make_engine(), [make_sequence(prompt)])["one"]
        token_id = whole[len(whole) // 2]
        if token_id not in used | set(prompt.token_ids) and len(whole) > 4:
            break
    engine = make_engine(num_blocks=128)
    for name, each in {"broken": prompt, **neighbors}.items():
        engine.add(make_sequence(each, seq_id=name))

    with poisoned(model, token_id):
        outputs = drain(engine)

    *before, last = outputs["broken"]
    assert [output.token_id for output in before] == whole[: whole.index(token_id) + 1]
    assert last.error is not None
    assert last.error.message == f"The model produced NaN or infinity after {len(before)} output tokens."
    assert tokens(outputs, *neighbors) == expected_outputs
    assert (
        run(engine, [make_sequence(prompt)])["one"] == whole
    )  # the weights have been restored, and no NaN is cached


def test_corrupt_image_features_fail_one_request_and_are_recomputed_for_the_next(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    neighbors: dict[str, Prompt],
    expected_outputs: dict[str, list[int]],
) -> None:
    prompt = random_prompt(np.random.default_rng(23), num_images=1)
    whole = run(make_engine(), [make_sequence(prompt)])["one"]
    engine = make_engine(num_blocks=128)
    cache = engine._runner.encoder_cache
    width = engine._runner.model.config.text_config.hidden_size
    cache.put(("", prompt.digests[0]), torch.full((4, width), torch.nan))
    for name, each in {"broken": prompt, **neighbors}.items():
        engine.add(make_sequence(each, seq_id=name))

    outputs = drain(engine)

    assert [output.error is None for output in outputs["broken"]] == [False]
    assert tokens(outputs, *neighbors) == expected_outputs
    assert run(engine, [make_sequence(prompt)])["one"] == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_bias": ((5, float("nan")),)}, "logit_bias for token 5 is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"pixels": [bytes(7)]}, "7 bytes for 4 tokens"),
    ],
    ids=["NaN bias", "infinite temperature", "broken image"],
)
def test_a_rejected_sequence_does_not_affect_running_ones(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    neighbors: dict[str, Prompt],
    expected_outputs: dict[str, list[int]],
    change: dict[str, Any],
    message: str,
) -> None:
    engine = make_engine(num_blocks=128)
    for name, each in neighbors.items():
        engine.add(make_sequence(each, seq_id=name))
    early = [output for _ in range(3) for output in engine.step()]
    pixels = change.pop("pixels", None)
    bad = make_sequence(neighbors["a"], seq_id="bad", **change)
    bad.pixels = pixels or bad.pixels

    with pytest.raises(SequenceRejected, match=message):
        engine.add(bad)

    outputs = drain(engine)
    assert "bad" not in outputs
    for name, output_ids in expected_outputs.items():
        first = [output.token_id for output in early if output.seq_id == name]
        assert first + tokens(outputs, name)[name] == output_ids


def test_a_duplicate_of_a_failed_sequence_reuses_nothing_of_it(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, model: Llava
) -> None:
    """The duplicate waits for the first sequence to compute the prefix.

    If the first sequence fails, the duplicate must not reuse its blocks.
    """
    token_id = 121
    prompt = Prompt([1, 5, token_id, *range(40, 60)])
    whole = run(make_engine(), [make_sequence(prompt, seq_id="second")])
    engine = make_engine(block_size=4, max_batch_tokens=64)
    engine.add(make_sequence(prompt, seq_id="first"))
    engine.add(make_sequence(prompt, seq_id="second"))

    with poisoned(model, token_id):
        (output,) = engine.step()
    assert (output.seq_id, output.error is None) == ("first", False)

    assert tokens(drain(engine), "second") == whole
