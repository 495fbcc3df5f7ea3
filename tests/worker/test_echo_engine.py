"""The echo engine: outputs are deterministic functions of the inputs and can be resumed at any token."""

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


def make_sequence(
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


def generate(sequence: Sequence, engine: EchoEngine | None = None) -> list[int]:
    engine = engine or EchoEngine()
    engine.add(sequence)
    return [output.token_id for output in run(engine) if output.token_id is not None]


def test_output_consists_of_lower_case_words_and_an_end_token() -> None:
    tokens = generate(make_sequence())
    text = b"".join(TOKENIZER.token_bytes(token_id) for token_id in tokens).decode()
    assert tokens[-1] == TOKENIZER.eos_token_id
    assert 64 <= len(tokens) < 128
    assert text == text.lower()
    assert all(word.isalpha() for word in text.split())


@given(st.integers(0, 127))
def test_output_resumed_at_any_token_equals_the_uninterrupted_output(cut: int) -> None:
    complete = generate(make_sequence())
    head = complete[: min(cut, len(complete))]
    assert head + generate(make_sequence(output_ids=head)) == complete


def test_resumed_output_that_was_complete_gets_no_further_token() -> None:
    engine = EchoEngine()
    engine.add(make_sequence(output_ids=generate(make_sequence())))
    assert run(engine) == [StepOutput("one", finish="stop")]


def test_output_depends_on_prompt_images_and_seed() -> None:
    outputs = [
        generate(make_sequence()),
        generate(make_sequence("Ho?")),
        generate(make_sequence(images=[ImageSpan(0, 1, "a")])),
        generate(make_sequence(sampling=greedy(temperature=1.0, seed=1))),
        generate(make_sequence(sampling=greedy(temperature=1.0, seed=2))),
    ]
    assert len({tuple(output) for output in outputs}) == len(outputs)


def test_greedy_output_does_not_depend_on_the_seed() -> None:
    assert generate(make_sequence(sampling=greedy(seed=5))) == generate(
        make_sequence(sampling=greedy(seed=6))
    )


def test_output_ends_at_its_limit() -> None:
    engine = EchoEngine()
    engine.add(make_sequence(max_new_tokens=5))
    outputs = run(engine)
    assert [output.token_id for output in outputs] == generate(make_sequence())[:5]
    assert outputs[-1].finish == "length"


def test_ignore_eos_continues_to_the_limit() -> None:
    tokens = generate(make_sequence(max_new_tokens=300, sampling=greedy(ignore_eos=True)))
    assert len(tokens) == 300
    assert TOKENIZER.eos_token_id not in tokens


def test_output_ends_at_the_context_length() -> None:
    assert len(generate(make_sequence("Hi?"), EchoEngine(context_length=10))) == 7


def test_prompt_as_long_as_the_context_is_rejected() -> None:
    with pytest.raises(SequenceRejected, match="3 tokens") as raised:
        EchoEngine(context_length=3).add(make_sequence("Hi?"))
    assert raised.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_concurrent_sequences_have_the_same_outputs_as_single_sequences() -> None:
    engine = EchoEngine(max_sequences=2)
    for number in range(5):
        engine.add(make_sequence(f"question {number}", seq_id=str(number)))
    assert engine.stats().num_running == 2
    assert engine.stats().num_waiting == 3
    outputs = run(engine)
    for number in range(5):
        alone = generate(make_sequence(f"question {number}"))
        assert [output.token_id for output in outputs if output.seq_id == str(number)] == alone


def test_stop_token_ends_the_output_even_as_the_last_resumed_token() -> None:
    complete = generate(make_sequence())
    stop = greedy(stop_token_ids=(complete[9],))
    head = complete[: complete.index(complete[9]) + 1]
    assert generate(make_sequence(sampling=stop)) == head
    engine = EchoEngine()
    engine.add(make_sequence(sampling=stop, output_ids=head))
    assert run(engine) == [StepOutput("one", finish="stop")]


def test_logprobs_are_returned_on_request() -> None:
    engine = EchoEngine()
    engine.add(make_sequence(sampling=greedy(num_logprobs=3)))
    assert all(output.logprobs and len(output.logprobs.top) == 3 for output in run(engine))
    engine.add(make_sequence())
    assert not any(output.logprobs for output in run(engine))


def test_prompt_logprobs_are_returned_once_on_request() -> None:
    for num_tokens in (3, 0):
        for num_prompt_logprobs in (None, 2):
            sequence = make_sequence("abc", max_new_tokens=num_tokens, sampling=greedy(num_logprobs=1))
            sequence.num_prompt_logprobs = num_prompt_logprobs
            engine = EchoEngine()
            engine.add(sequence)
            num_logprobs = [len(output.prompt_logprobs) for output in run(engine)]
            expected = len(sequence.prompt_ids) - 1 if num_prompt_logprobs else 0
            assert num_logprobs == [expected, *[0] * max(num_tokens - 1, 0)]


def test_embedding_is_computed_from_the_token_counts_of_the_prompt() -> None:
    engine = EchoEngine()
    for text in ("aab", "aabq"):
        sequence = make_sequence(text, seq_id=text)
        sequence.is_embedding = True
        engine.add(sequence)
    first, second = (struct.unpack("<16f", output.vector) for output in run(engine))
    assert [(index, value) for index, value in enumerate(first) if value] == [
        (ord("a") % 16, pytest.approx(2 / 5**0.5)),
        (ord("b") % 16, pytest.approx(1 / 5**0.5)),
    ]
    assert second[ord("q") % 16] == pytest.approx(3 / 10**0.5)


def test_aborted_sequence_has_no_further_output() -> None:
    engine = EchoEngine()
    engine.add(make_sequence())
    engine.step()
    engine.abort("one")
    engine.abort("never seen")
    assert engine.num_sequences == 0
    assert engine.step() == []


def test_prompts_can_request_faults() -> None:
    engine = EchoEngine(has_faults=True)
    with pytest.raises(SequenceRejected):
        engine.add(make_sequence("[[refuse]]"))
    engine.add(make_sequence("[[error at 2]]"))
    outputs = run(engine)
    assert len(outputs) == 3
    assert outputs[-1].error
    engine.add(make_sequence("[[fail at 1]]"))
    engine.step()
    with pytest.raises(RuntimeError):
        engine.step()


def test_faults_are_off_by_default() -> None:
    for marker in ("[[refuse]]", "[[error]]", "[[fail]]", "[[crash]]", "[[hang]]"):
        assert generate(make_sequence(marker))[-1] == TOKENIZER.eos_token_id
