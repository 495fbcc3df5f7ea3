"""An answer: events that join to the whole, and a beginning exactly where another worker stopped."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode, Event, FinishReason, JobError, TokenLogprob, TokenScore
from llava_wire.messages.job import ImageRef, Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import ImageSpan, Sampling, StepOutput, TokenLogprobs
from llava_worker.engine_thread import Refusal
from llava_worker.job_output import JobOutput
from llava_worker.job_sequence import make_sequence
from llava_worker.language.prompt_builder import Prompt, PromptError
from llava_worker.language.tokenizer import ByteTokenizer
from msgspec import structs

TOKENIZER = ByteTokenizer()
PICTURE = ImageRef(digest="a", num_tiles=1, side=2, width=2, height=2)
PIXELS = bytes(2 * 2 * 3)


def assignment(
    *, log: bytes = b"", text: str | None = None, pixels: dict[str, bytes] | None = None, **sampling: object
) -> Assignment:
    job = Job(
        job_id="job",
        model="echo",
        tenant="tenant",
        messages=(Message("user", (PICTURE, "Hi?")),),
        sampling=SamplingParams(**({"seed": 1} | sampling)),  # type: ignore[arg-type]
        cost=1.0,
    )
    text = log.decode(errors="ignore") if text is None else text
    return Assignment(job, "fence", tuple(log), text, {"a": PIXELS} if pixels is None else pixels)


def outputs(text: bytes, finish: str | None = None) -> list[StepOutput]:
    made = [StepOutput("fence", token_id) for token_id in text]
    if finish == "stop":
        made.append(StepOutput("fence", TOKENIZER.eos_token_id, "stop"))
    elif finish == "length":
        made[-1] = StepOutput("fence", made[-1].token_id, "length")
    return made


def events(answer: JobOutput, *batches: list[StepOutput]) -> list[Event]:
    found = []
    for batch in batches:
        for output in batch:
            answer.process(output)
        event = answer.next_event()
        if event is not None:
            found.append(event)
    return found


def test_tokens_that_gather_leave_as_one_event() -> None:
    first, second = events(JobOutput(assignment(), TOKENIZER), outputs(b"ab"), outputs(b"c", "stop"))
    assert first == Event(offset=0, token_ids=(97, 98), text="ab")
    assert (second.offset, second.token_ids, second.text) == (2, (99, TOKENIZER.eos_token_id), "c")
    assert second.final is not None
    assert second.final.reason is FinishReason.STOP


def test_without_news_there_is_no_event() -> None:
    assert JobOutput(assignment(), TOKENIZER).next_event() is None


def test_an_answer_cut_by_its_limit_says_length() -> None:
    (event,) = events(JobOutput(assignment(), TOKENIZER), outputs(b"ab", "length"))
    assert event.final is not None
    assert event.final.reason is FinishReason.LENGTH


def test_a_stop_string_ends_the_answer_before_it() -> None:
    answer = JobOutput(assignment(stop=("\n\n",)), TOKENIZER)
    (event,) = events(answer, outputs(b"one\n\ntwo"))
    assert event.text == "one"
    assert event.token_ids == tuple(b"one\n\n")
    assert answer.is_finished


def test_the_sign_that_ends_a_turn_in_the_models_template_ends_the_answer() -> None:
    answer = JobOutput(assignment(stop=("\n\n",)), TOKENIZER, stop=("###",))
    (event,) = events(answer, outputs(b"one### Human: two"))
    assert event.text == "one"
    assert answer.is_finished


def test_held_back_text_leaves_with_the_end() -> None:
    answer = JobOutput(assignment(stop=("END",)), TOKENIZER)
    first, second = events(answer, outputs(b"the EN"), outputs(b"", "stop"))
    assert (first.text, second.text) == ("the ", "EN")


def test_usage_counts_the_prompt_and_what_was_cached() -> None:
    answer = JobOutput(assignment(), TOKENIZER)
    answer.num_prompt_tokens = 9
    (event,) = events(answer, [StepOutput("fence", 97, "length", num_cached_tokens=8)])
    assert event.final is not None
    assert (event.final.num_prompt_tokens, event.final.num_cached_tokens) == (9, 8)


@pytest.mark.parametrize("cut", range(len("grün END? no".encode())))
def test_a_stream_cut_anywhere_goes_on_to_the_same_text(cut: int) -> None:
    whole = "grün END? no".encode()
    before = events(JobOutput(assignment(stop=("END!",)), TOKENIZER), outputs(whole[:cut]))
    said = "".join(event.text for event in before)
    after = JobOutput(assignment(log=whole[:cut], text=said, stop=("END!",)), TOKENIZER)
    rest = events(after, outputs(whole[cut:], "stop"))
    assert rest[0].offset == cut
    assert said + "".join(event.text for event in rest) == whole.decode()


def test_a_stop_string_across_the_cut_is_found() -> None:
    answer = JobOutput(assignment(log=b"one EN", text="one ", stop=("END",)), TOKENIZER)
    (event,) = events(answer, outputs(b"D two"))
    assert event.text == ""
    assert event.token_ids == (ord("D"),)
    assert answer.is_finished


def test_a_log_that_holds_the_stop_string_needs_only_its_end() -> None:
    answer = JobOutput(assignment(log=b"one END", text="one ", stop=("END",)), TOKENIZER)
    event = answer.next_event()
    assert event is not None
    assert (event.offset, event.token_ids, event.text) == (7, (), "")
    assert event.final is not None
    assert event.final.reason is FinishReason.STOP


def test_text_that_another_version_logged_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    answer = JobOutput(assignment(log=b"one", text="ONE"), TOKENIZER)
    (event,) = events(answer, outputs(b" two"))
    assert event.text == " two"
    assert "job_id=job" in caplog.text


@pytest.mark.parametrize(
    ("news", "code"),
    [
        (Refusal("fence", "context_length_exceeded", "too long"), ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        (StepOutput("fence", error="not a number"), ErrorCode.INTERNAL_ERROR),
        (StepOutput("fence", error="late", error_code="deadline_exceeded"), ErrorCode.DEADLINE_EXCEEDED),
    ],
)
def test_what_the_engine_cannot_do_ends_the_job_with_an_error(
    news: Refusal | StepOutput, code: ErrorCode
) -> None:
    answer = JobOutput(assignment(), TOKENIZER)
    answer.process(news)
    event = answer.next_event()
    assert event is not None
    assert event.final is not None
    assert event.final.reason is FinishReason.ERROR
    assert event.final.error is not None
    assert event.final.error.code is code


@pytest.mark.parametrize("param", ["logit_bias", None])
def test_a_refusal_tells_which_field_of_the_request_it_is_about(param: str | None) -> None:
    answer = JobOutput(assignment(), TOKENIZER)
    answer.process(Refusal("fence", "invalid_request", "token 9 is none", param))
    event = answer.next_event()
    assert event is not None
    assert event.final is not None
    assert event.final.error == JobError(ErrorCode.INVALID_REQUEST, "token 9 is none", param)


def test_nothing_follows_the_end() -> None:
    answer = JobOutput(assignment(), TOKENIZER)
    answer.fail(JobError(ErrorCode.INTERNAL_ERROR, "x"))
    assert answer.next_event() is not None
    assert events(answer, outputs(b"late")) == []


def prompt() -> Prompt:
    return Prompt(list(b"prompt"), [ImageSpan(0, 1, "a")])


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 94), (10, 10), (1000, 94)])
def test_an_answer_may_fill_the_context_and_no_more(max_tokens: int | None, expected: int) -> None:
    made = make_sequence(assignment(max_tokens=max_tokens), prompt(), context_length=100)
    assert made.max_new_tokens == expected


def test_a_sequence_carries_the_job_and_its_log() -> None:
    made = make_sequence(assignment(log=b"ab", temperature=0.5, top_p=0.9), prompt(), context_length=100)
    assert (made.seq_id, made.cache_scope, made.output_ids) == ("fence", "tenant tenant", [97, 98])
    assert (made.priority, made.deadline_s) == (0, None)
    assert (made.sampling.temperature, made.sampling.top_p, made.sampling.seed) == (0.5, 0.9, 1)
    assert made.pixels == [PIXELS]


def scope_of(tenant: str, cache_scope: str) -> str:
    own = assignment()
    job = structs.replace(own.job, tenant=tenant, cache_scope=cache_scope)
    return make_sequence(replace(own, job=job), prompt(), context_length=100).cache_scope


def test_a_public_job_shares_with_no_tenant_whatever_its_name() -> None:
    assert scope_of("a", "public") == scope_of("b", "public")
    assert scope_of("a", "public") not in (scope_of("a", "tenant"), scope_of("public", "tenant"))


def test_a_sequence_knows_when_its_time_is_over() -> None:
    before = time.monotonic()
    made = make_sequence(replace(assignment(), left_s=60.0), prompt(), context_length=100)
    assert made.deadline_s is not None
    assert before + 60 <= made.deadline_s <= time.monotonic() + 60


@pytest.mark.parametrize("pixels", [{}, {"a": PIXELS + b"x"}])
def test_pixels_of_another_size_are_refused(pixels: dict[str, bytes]) -> None:
    with pytest.raises(PromptError, match="bytes of pixels instead of 12"):
        make_sequence(assignment(pixels=pixels), prompt(), context_length=100)


def test_a_stop_token_ends_the_answer_and_is_not_in_its_text() -> None:
    answer = JobOutput(assignment(stop_token_ids=(ord("!"),)), TOKENIZER)
    (event,) = events(answer, [*outputs(b"one"), StepOutput("fence", ord("!"), "stop")])
    assert (event.text, event.token_ids) == ("one", tuple(b"one!"))
    assert event.final is not None
    assert event.final.reason is FinishReason.STOP


def test_a_stop_token_at_the_end_of_the_log_has_no_text_either() -> None:
    answer = JobOutput(assignment(log=b"one!", text="one", stop_token_ids=(ord("!"),)), TOKENIZER)
    (event,) = events(answer, [StepOutput("fence", finish="stop")])
    assert (event.offset, event.text, event.token_ids) == (4, "", ())


def test_logprobs_leave_with_their_tokens_though_the_text_is_held_back() -> None:
    answer = JobOutput(assignment(stop=("END",), num_logprobs=1), TOKENIZER)
    told = [
        StepOutput("fence", token_id, logprobs=TokenLogprobs(-0.5, ((TOKENIZER.eos_token_id, -0.1),)))
        for token_id in b"aE"
    ]
    (event,) = events(answer, told)
    assert event.text == "a"
    assert event.logprobs == tuple(
        TokenLogprob(TokenScore(token_id, bytes([token_id]), -0.5), (TokenScore(257, b"", -0.1),))
        for token_id in b"aE"
    )
    assert events(answer, outputs(b"x"))[0].logprobs == ()


def test_every_sampling_parameter_reaches_the_engine() -> None:
    wanted: dict[str, object] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "ignore_eos": True,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": ((5, 1.0),),
        "min_tokens": 6,
        "stop_token_ids": (7,),
        "num_logprobs": 8,
    }
    sequence = make_sequence(assignment(**wanted), prompt(), context_length=100)
    assert sequence.sampling == Sampling(**wanted)  # type: ignore[arg-type]
    assert set(wanted) == set(Sampling.__dataclass_fields__)
