"""A job's events contain the entire response, and continue exactly where a previous worker stopped."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.messages.event import ErrorCode, Event, FinishReason, JobError, TokenLogprob, TokenScore
from llava_wire.messages.job import Message
from llava_worker.engine import StepOutput, TokenLogprobs
from llava_worker.job_output import JobOutput
from llava_worker.language.prompt_builder import Prompt
from llava_worker.language.tokenizer import ByteTokenizer

from tests.worker.assignments import ASSIGNMENT_ID, make_assignment, make_job

TOKENIZER = ByteTokenizer()
QUESTION = Message("user", ("Hi?",))


def make_output(
    *, log: bytes = b"", log_text: str | None = None, template_stop: tuple[str, ...] = (), **sampling: object
) -> JobOutput:
    assignment = make_assignment(make_job(QUESTION, sampling=sampling), log=log, log_text=log_text)
    return JobOutput(assignment, TOKENIZER, stop=template_stop)


def step_outputs(text: bytes, finish: str | None = None) -> list[StepOutput]:
    """Return one output for each byte, followed by an end-of-sequence token if ``finish`` is "stop"."""
    outputs = [StepOutput(ASSIGNMENT_ID, token_id) for token_id in text]
    if finish == "stop":
        outputs.append(StepOutput(ASSIGNMENT_ID, TOKENIZER.eos_token_id, "stop"))
    elif finish == "length":
        outputs[-1] = StepOutput(ASSIGNMENT_ID, outputs[-1].token_id, "length")
    return outputs


def events(output: JobOutput, *batches: list[StepOutput]) -> list[Event]:
    """Process the batches of outputs. Return the resulting events, at most one per batch."""
    collected = []
    for batch in batches:
        for step_output in batch:
            output.process(step_output)
        event = output.next_event()
        if event is not None:
            collected.append(event)
    return collected


def finish_reason(event: Event) -> FinishReason | None:
    return event.final.reason if event.final else None


def test_tokens_since_the_last_event_are_sent_in_one_event() -> None:
    output = make_output()
    assert output.next_event() is None
    first, second = events(output, step_outputs(b"ab"), step_outputs(b"c", "stop"))
    assert first == Event(offset=0, token_ids=(97, 98), text="ab")
    assert (second.offset, second.token_ids, second.text) == (2, (99, TOKENIZER.eos_token_id), "c")
    assert finish_reason(second) is FinishReason.STOP


def test_only_the_first_event_of_a_worker_contains_the_digest_of_its_model() -> None:
    for log in (b"", b"ab"):  # a new output and one that was started by another worker
        assignment = make_assignment(make_job(QUESTION), log=log)
        output = JobOutput(assignment, TOKENIZER, model_digest="d")
        sent = events(output, step_outputs(b"a"), step_outputs(b"b"), step_outputs(b"c", "stop"))
        assert [event.model_digest for event in sent] == ["d", "", ""]


def test_finish_reason_is_length_at_the_limit() -> None:
    [event] = events(make_output(), step_outputs(b"ab", "length"))
    assert finish_reason(event) is FinishReason.LENGTH


def test_stop_strings_of_the_job_and_the_template_end_the_text() -> None:
    output = make_output(stop=("\n\n",))
    [event] = events(output, step_outputs(b"one\n\ntwo"))
    assert (event.text, event.token_ids) == ("one", tuple(b"one\n\n"))
    assert output.is_finished

    output = make_output(stop=("\n\n",), template_stop=("###",))
    [event] = events(output, step_outputs(b"one### Human: two"))
    assert event.text == "one"
    assert output.is_finished


def test_held_back_text_is_in_the_last_event() -> None:
    first, second = events(make_output(stop=("END",)), step_outputs(b"the EN"), step_outputs(b"", "stop"))
    assert (first.text, second.text) == ("the ", "EN")


def test_stop_token_ends_the_output_without_text() -> None:
    output = make_output(stop_token_ids=(ord("!"),))
    [event] = events(output, [*step_outputs(b"one"), StepOutput(ASSIGNMENT_ID, ord("!"), "stop")])
    assert (event.text, event.token_ids) == ("one", tuple(b"one!"))
    assert finish_reason(event) is FinishReason.STOP

    output = make_output(log=b"one!", log_text="one", stop_token_ids=(ord("!"),))
    [event] = events(output, [StepOutput(ASSIGNMENT_ID, finish="stop")])
    assert (event.offset, event.text, event.token_ids) == (4, "", ())


def test_usage_has_prompt_and_cached_tokens() -> None:
    output = make_output()
    output.start(Prompt(list(b"prompt 9.")))
    [event] = events(output, [StepOutput(ASSIGNMENT_ID, 97, "length", num_cached_tokens=8)])
    assert event.final is not None
    assert (event.final.num_prompt_tokens, event.final.num_cached_tokens) == (9, 8)


def test_prompt_length_is_in_the_first_event_only() -> None:
    output = make_output()
    output.start(Prompt(list(b"prompt")))
    assert output.next_event() is None
    first, second = events(output, step_outputs(b"a"), step_outputs(b"b"))
    assert (first.num_prompt_tokens, second.num_prompt_tokens) == (6, 0)


def test_output_resumed_at_any_token_has_the_same_text() -> None:
    text = "grün END? no"
    tokens = text.encode()
    for num_logged in range(len(tokens)):
        logged = events(make_output(stop=("END!",)), step_outputs(tokens[:num_logged]))
        log_text = "".join(event.text for event in logged)
        resumed = make_output(log=tokens[:num_logged], log_text=log_text, stop=("END!",))
        rest = events(resumed, step_outputs(tokens[num_logged:], "stop"))
        assert rest[0].offset == num_logged
        assert log_text + "".join(event.text for event in rest) == text


def test_stop_string_that_begins_in_the_log_is_found() -> None:
    output = make_output(log=b"one EN", log_text="one ", stop=("END",))
    [event] = events(output, step_outputs(b"D two"))
    assert (event.text, event.token_ids) == ("", (ord("D"),))
    assert output.is_finished


def test_log_that_contains_the_stop_string_needs_only_the_final_event() -> None:
    event = make_output(log=b"one END", log_text="one ", stop=("END",)).next_event()
    assert event is not None
    assert (event.offset, event.token_ids, event.text) == (7, (), "")
    assert finish_reason(event) is FinishReason.STOP


def test_text_logged_by_another_version_is_not_changed(caplog: pytest.LogCaptureFixture) -> None:
    [event] = events(make_output(log=b"one", log_text="ONE"), step_outputs(b" two"))
    assert event.text == " two"
    assert "job_id=job" in caplog.text


def test_engine_error_is_the_last_event() -> None:
    for error in (
        JobError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long"),
        JobError(ErrorCode.INVALID_REQUEST, "token 9 is none", "logit_bias"),
        JobError(ErrorCode.INSUFFICIENT_MEMORY, "out of memory"),
        JobError(ErrorCode.INTERNAL_ERROR, "not a number"),
    ):
        output = make_output()
        [event] = events(output, [StepOutput(ASSIGNMENT_ID, error=error)])
        assert event.final is not None
        assert (event.final.reason, event.final.error) == (FinishReason.ERROR, error)
        assert events(output, step_outputs(b"late")) == []


def test_logprobs_are_in_the_event_of_their_tokens_even_if_the_text_is_held_back() -> None:
    output = make_output(stop=("END",), num_logprobs=1)
    logprobs = TokenLogprobs(-0.5, ((TOKENIZER.eos_token_id, -0.1),))
    [event] = events(output, [StepOutput(ASSIGNMENT_ID, token_id, logprobs=logprobs) for token_id in b"aE"])
    assert event.text == "a"
    assert event.logprobs == tuple(
        TokenLogprob(TokenScore(token_id, bytes([token_id]), -0.5), (TokenScore(257, b"", -0.1, "</s>"),))
        for token_id in b"aE"
    )
    assert events(output, step_outputs(b"x"))[0].logprobs == ()


def test_leading_space_of_the_tokenizer_is_not_in_the_logprobs() -> None:
    class SpacePrefixTokenizer(ByteTokenizer):
        strips_leading_space = True

    def texts(log: bytes, **fields: Any) -> list[tuple[bytes, bytes]]:
        job = make_job(QUESTION, sampling={"num_logprobs": 1}, **fields)
        output = JobOutput(make_assignment(job, log=log), SpacePrefixTokenizer())
        logprobs = TokenLogprobs(-0.5, ((ord(" "), -0.1),))
        [event] = events(
            output, [StepOutput(ASSIGNMENT_ID, token_id, logprobs=logprobs) for token_id in b" a"]
        )
        return [(token.sampled.text, token.top[0].text) for token in event.logprobs]

    assert texts(b"") == [(b"", b""), (b"a", b" ")]
    assert texts(b"x") == texts(b"", form="raw") == [(b" ", b" "), (b"a", b" ")]


def test_sampled_stop_token_has_no_text_in_the_logprobs() -> None:
    output = make_output(stop_token_ids=(ord("!"),), num_logprobs=1)
    logprobs = TokenLogprobs(-0.5, ((ord("!"), -0.5),))
    [event] = events(output, [StepOutput(ASSIGNMENT_ID, ord("!"), "stop", logprobs=logprobs)])
    [token] = event.logprobs
    assert (token.sampled.text, token.top[0].text) == (b"", b"!")


def test_tokenize_job_ends_with_the_prompt_tokens() -> None:
    output = JobOutput(make_assignment(make_job(QUESTION, task="tokenize")), TOKENIZER)
    output.start(Prompt(list(b"Hi?\n")))
    event = output.next_event()
    assert event is not None and event.final is not None
    assert (event.token_ids, event.text) == (tuple(b"Hi?\n"), "")
    assert (event.final.reason, event.final.num_prompt_tokens) == (FinishReason.STOP, 4)


def test_detokenize_job_ends_with_the_text_and_ignores_stop_strings() -> None:
    token_ids = (*"ä USER".encode(), TOKENIZER.eos_token_id)
    job = make_job(prompt_ids=token_ids, task="detokenize", sampling={"stop": (" ",)})
    output = JobOutput(make_assignment(job), TOKENIZER, stop=("USER",))
    output.start(Prompt(list(token_ids), text="ä USER"))
    event = output.next_event()
    assert event is not None
    assert (event.text, event.token_ids, finish_reason(event)) == ("ä USER", (), FinishReason.STOP)
