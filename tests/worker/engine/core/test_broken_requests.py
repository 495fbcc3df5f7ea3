"""A request that goes wrong ends alone: its neighbours say what they would have said, and nothing stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from llava_worker.engine import SequenceRejected, StepOutput

from tests.worker.checkpoints import Prompt, random_prompt

Story = dict[str, list[StepOutput]]


@pytest.fixture
def neighbours() -> dict[str, Prompt]:
    rng = np.random.default_rng(21)
    return {name: random_prompt(rng, num_images=1) for name in "abc"}


@pytest.fixture
def answers(make_engine, make_sequence, run, neighbours) -> dict[str, list[int]]:
    """What the neighbours say when nothing goes wrong."""
    return {name: run(make_engine(), [make_sequence(each)])["one"] for name, each in neighbours.items()}


def tell(engine) -> Story:
    """Everything that is said until all have ended."""
    story: Story = {}
    while engine.num_sequences:
        for output in engine.step():
            story.setdefault(output.seq_id, []).append(output)
        engine.check()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return story


def tokens(story: Story, *names: str) -> dict[str, list[int | None]]:
    return {name: [output.token_id for output in story[name]] for name in names}


@contextmanager
def poisoned(model, word: int) -> Iterator[None]:
    """A bad row among the weights: what sees this word is not a number."""
    weight = model.language_model.embed_tokens.weight
    healthy = weight[word].clone()
    weight[word] = torch.nan
    try:
        yield
    finally:
        weight[word] = healthy


def test_an_answer_that_breaks_in_its_middle_keeps_what_was_said_and_the_neighbours_go_on(
    make_engine, make_sequence, run, model, neighbours, answers
) -> None:
    rng = np.random.default_rng(22)
    said = {token_id for answer in answers.values() for token_id in answer}
    said |= {token_id for each in neighbours.values() for token_id in each.token_ids}
    while True:  # a prompt whose answer has a word in its middle that nobody else uses
        prompt = random_prompt(rng, num_images=1)
        whole = run(make_engine(), [make_sequence(prompt)])["one"]
        word = whole[len(whole) // 2]
        if word not in said | set(prompt.token_ids) and len(whole) > 4:
            break
    engine = make_engine(num_blocks=128)
    for name, each in {"broken": prompt, **neighbours}.items():
        engine.add(make_sequence(each, seq_id=name))

    with poisoned(model, word):
        story = tell(engine)

    *before, last = story["broken"]
    assert [output.token_id for output in before] == whole[: whole.index(word) + 1]
    assert last.error is not None
    assert last.error.message == f"the model's output at token {len(before)} is not a number"
    assert tokens(story, *neighbours) == answers
    assert run(engine, [make_sequence(prompt)])["one"] == whole  # healed, and nothing bad was kept


def test_a_picture_gone_bad_breaks_its_own_request_and_is_looked_at_anew_for_the_next(
    make_engine, make_sequence, run, neighbours, answers
) -> None:
    prompt = random_prompt(np.random.default_rng(23), num_images=1)
    whole = run(make_engine(), [make_sequence(prompt)])["one"]
    engine = make_engine(num_blocks=128)
    pictures = engine._runner.encoder_cache
    width = engine._runner.model.config.text_config.hidden_size
    pictures.put(("", prompt.digests[0]), torch.full((4, width), torch.nan))
    for name, each in {"broken": prompt, **neighbours}.items():
        engine.add(make_sequence(each, seq_id=name))

    story = tell(engine)

    assert [output.error is None for output in story["broken"]] == [False]
    assert tokens(story, *neighbours) == answers
    assert run(engine, [make_sequence(prompt)])["one"] == whole


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"logit_bias": ((5, float("nan")),)}, "logit_bias of token 5 is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"pixels": [bytes(7)]}, "7 bytes for 4 tokens"),
    ],
    ids=["NaN bias", "infinite temperature", "broken picture"],
)
def test_what_is_refused_at_the_door_disturbs_nobody_inside(
    make_engine, make_sequence, neighbours, answers, change: dict, what: str
) -> None:
    engine = make_engine(num_blocks=128)
    for name, each in neighbours.items():
        engine.add(make_sequence(each, seq_id=name))
    early = [output for _ in range(3) for output in engine.step()]
    pixels = change.pop("pixels", None)
    bad = make_sequence(neighbours["a"], seq_id="bad", **change)
    bad.pixels = pixels or bad.pixels

    with pytest.raises(SequenceRejected, match=what):
        engine.add(bad)

    story = tell(engine)
    assert "bad" not in story
    for name, answer in answers.items():
        first = [output.token_id for output in early if output.seq_id == name]
        assert first + tokens(story, name)[name] == answer


def test_twins_of_a_request_that_breaks_are_answered_once_the_cause_is_gone(
    make_engine, make_sequence, run, model
) -> None:
    """The twin waits for what the first computes; of that nothing may reach it."""
    word = 121
    prompt = Prompt([1, 5, word, *range(40, 60)])
    whole = run(make_engine(), [make_sequence(prompt, seq_id="second")])
    engine = make_engine(block_size=4, max_batch_tokens=64)
    engine.add(make_sequence(prompt, seq_id="first"))
    engine.add(make_sequence(prompt, seq_id="second"))

    with poisoned(model, word):
        (output,) = engine.step()
    assert (output.seq_id, output.error is None) == ("first", False)

    assert tokens(tell(engine), "second") == whole
