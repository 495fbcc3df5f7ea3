"""The echo engine: a function of what it was given, continued as if never interrupted."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import ImageSpan, Sequence, SequenceRejected, StepOutput
from llava_worker.language.tokenizer import ByteTokenizer

from tests.worker.sampling_params import greedy

TOKENIZER = ByteTokenizer()


def sequence(
    text: str = "Hi?",
    *,
    seq_id: str = "one",
    max_new_tokens: int = 1000,
    images: list[ImageSpan] | None = None,
    output_ids: list[int] | None = None,
    sampling: SamplingParams | None = None,
) -> Sequence:
    return Sequence(
        seq_id=seq_id,
        prompt_ids=TOKENIZER.encode(text),
        max_new_tokens=max_new_tokens,
        images=images or [],
        output_ids=list(output_ids or []),
        sampling=sampling or greedy(),
    )


def run(engine: EchoEngine) -> list[StepOutput]:
    outputs: list[StepOutput] = []
    while engine.num_sequences:
        outputs += engine.step()
    return outputs


def answer(given: Sequence, engine: EchoEngine | None = None) -> list[int]:
    engine = engine or EchoEngine()
    engine.add(given)
    return [output.token_id for output in run(engine) if output.token_id is not None]


def test_an_answer_is_lower_case_words_that_end_by_themselves() -> None:
    tokens = answer(sequence())
    text = b"".join(TOKENIZER.token_bytes(token_id) for token_id in tokens).decode()
    assert tokens[-1] == TOKENIZER.eos_token_id
    assert 64 <= len(tokens) < 128
    assert text == text.lower()
    assert all(word.isalpha() for word in text.split())


@given(st.integers(0, 127))
def test_an_answer_continued_anywhere_is_the_unbroken_one(cut: int) -> None:
    whole = answer(sequence())
    head = whole[: min(cut, len(whole))]
    assert head + answer(sequence(output_ids=head)) == whole


def test_a_continued_answer_that_was_complete_ends_without_a_token() -> None:
    engine = EchoEngine()
    engine.add(sequence(output_ids=answer(sequence())))
    assert run(engine) == [StepOutput("one", finish="stop")]


@pytest.mark.parametrize(
    "other",
    [
        sequence("Ho?"),
        sequence(images=[ImageSpan(0, 1, "a")]),
        sequence(sampling=greedy(temperature=1.0, seed=1)),
        sequence(sampling=greedy(temperature=1.0, seed=2)),
    ],
)
def test_prompt_pictures_and_seed_change_the_answer(other: Sequence) -> None:
    assert answer(other) != answer(sequence())


def test_a_greedy_answer_does_not_depend_on_the_seed() -> None:
    assert answer(sequence(sampling=greedy(seed=5))) == answer(sequence(sampling=greedy(seed=6)))


def test_a_limit_cuts_the_answer_and_says_so() -> None:
    engine = EchoEngine()
    engine.add(sequence(max_new_tokens=5))
    outputs = run(engine)
    assert [output.token_id for output in outputs] == answer(sequence())[:5]
    assert outputs[-1].finish == "length"


def test_ignoring_the_end_goes_on_to_the_limit() -> None:
    tokens = answer(sequence(max_new_tokens=300, sampling=greedy(ignore_eos=True)))
    assert len(tokens) == 300
    assert TOKENIZER.eos_token_id not in tokens


def test_the_contexts_end_is_a_limit_too() -> None:
    assert len(answer(sequence("Hi?"), EchoEngine(context_length=10))) == 7


def test_a_prompt_as_long_as_the_context_is_refused() -> None:
    with pytest.raises(SequenceRejected, match="3 tokens") as refusal:
        EchoEngine(context_length=3).add(sequence("Hi?"))
    assert refusal.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_neighbours_do_not_change_an_answer() -> None:
    engine = EchoEngine(max_sequences=2)
    for number in range(5):
        engine.add(sequence(f"question {number}", seq_id=str(number)))
    assert engine.stats().num_running == 2
    assert engine.stats().num_waiting == 3
    outputs = run(engine)
    for number in range(5):
        alone = answer(sequence(f"question {number}"))
        assert [output.token_id for output in outputs if output.seq_id == str(number)] == alone


def test_a_stop_token_ends_the_answer_also_when_it_was_the_last_of_another_worker() -> None:
    whole = answer(sequence())
    stop = greedy(stop_token_ids=(whole[9],))
    head = whole[: whole.index(whole[9]) + 1]
    assert answer(sequence(sampling=stop)) == head
    engine = EchoEngine()
    engine.add(sequence(sampling=stop, output_ids=head))
    assert run(engine) == [StepOutput("one", finish="stop")]


def test_logprobs_are_told_to_who_asks() -> None:
    engine = EchoEngine()
    engine.add(sequence(sampling=greedy(num_logprobs=3)))
    assert all(output.logprobs and len(output.logprobs.top) == 3 for output in run(engine))
    engine.add(sequence())
    assert not any(output.logprobs for output in run(engine))


@pytest.mark.parametrize("num_tokens", [3, 0])
def test_the_prompts_logprobs_are_told_once_to_who_asks(num_tokens: int) -> None:
    for is_asking in (False, True):
        asking = sequence("abc", max_new_tokens=num_tokens, sampling=greedy(num_logprobs=1))
        asking.has_prompt_logprobs = is_asking
        engine = EchoEngine()
        engine.add(asking)
        told = [len(output.prompt_logprobs) for output in run(engine)]
        assert told == [(len(asking.prompt_ids) - 1) * is_asking, *[0] * max(num_tokens - 1, 0)]


def test_an_embedding_is_how_often_the_prompt_has_each_token() -> None:
    one, other = sequence("aab"), sequence("aabq", seq_id="other")
    for each in (one, other):
        each.is_embedding = True
    engine = EchoEngine()
    engine.add(one)
    engine.add(other)
    told = [struct.unpack("<16f", output.vector) for output in run(engine)]
    assert [(value, output) for value, output in enumerate(told[0]) if output] == [
        (ord("a") % 16, pytest.approx(2 / 5**0.5)),
        (ord("b") % 16, pytest.approx(1 / 5**0.5)),
    ]
    assert told[1][ord("q") % 16] == pytest.approx(3 / 10**0.5)


def test_an_aborted_sequence_says_nothing_more() -> None:
    engine = EchoEngine()
    engine.add(sequence())
    engine.step()
    engine.abort("one")
    engine.abort("never seen")
    assert engine.num_sequences == 0
    assert engine.step() == []


def test_faults_asked_for_in_the_prompt_happen() -> None:
    engine = EchoEngine(has_faults=True)
    with pytest.raises(SequenceRejected):
        engine.add(sequence("[[refuse]]"))
    engine.add(sequence("[[error at 2]]"))
    outputs = run(engine)
    assert len(outputs) == 3
    assert outputs[-1].error
    engine.add(sequence("[[fail at 1]]"))
    engine.step()
    with pytest.raises(RuntimeError):
        engine.step()


def test_faults_do_not_happen_unless_enabled() -> None:
    for marker in ("[[refuse]]", "[[error]]", "[[fail]]", "[[crash]]", "[[hang]]"):
        assert answer(sequence(marker))[-1] == TOKENIZER.eos_token_id
