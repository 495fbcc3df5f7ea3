"""A prompt that is echoed leaves with the answer's first event, whole and once, and with no other worker."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode, Event, FinishReason, JobError
from llava_wire.messages.job import Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import StepOutput, TokenLogprobs
from llava_worker.job_output import JobOutput
from llava_worker.job_sequence import make_sequence
from llava_worker.language.prompt_builder import Prompt
from llava_worker.language.tokenizer import ByteTokenizer
from msgspec import structs
from tests.worker.test_worker import running

from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient

BOS = ByteTokenizer.bos_token_id
PROMPT = Prompt([BOS, *b" Hi"])
LOGPROBS = tuple(TokenLogprobs(-place / 4, ((place, -0.1),)) for place in (1, 2, 3))


@pytest.fixture(autouse=True)
def _pulls_wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain waits for the pull in hand."""
    monkeypatch.setattr("llava_wire.worker_side.consumer.WAIT_S", 0.05)


class LlamaLike(ByteTokenizer):
    strips_leading_space = True


def assignment(*, log: bytes = b"", is_echoed: bool = True, num_logprobs: int | None = 1) -> Assignment:
    job = Job(
        job_id="job",
        model="echo",
        tenant="tenant",
        messages=(Message("user", (" Hi",)),),
        sampling=SamplingParams(seed=1, num_logprobs=num_logprobs),
        cost=1.0,
        form="raw",
        is_echoed=is_echoed,
    )
    return Assignment(job, "fence", tuple(log), log.decode(), {})


def first_event(answer: JobOutput, *outputs: StepOutput) -> Event:
    answer.start(PROMPT)
    for output in outputs:
        answer.process(output)
    event = answer.next_event()
    assert event is not None
    return event


def token(token_id: int, prompt: tuple[TokenLogprobs, ...] = ()) -> StepOutput:
    return StepOutput("fence", token_id, logprobs=TokenLogprobs(-9.0), prompt_logprobs=prompt)


def test_the_first_event_has_the_prompts_tokens_and_no_other_has() -> None:
    answer = JobOutput(assignment(), ByteTokenizer())
    event = first_event(answer, token(ord("a"), LOGPROBS), token(ord("b")))
    assert [each.chosen.token_id for each in event.prompt] == PROMPT.token_ids
    assert [each.chosen.text for each in event.prompt] == [b"", b" ", b"H", b"i"]
    assert [each.chosen.logprob for each in event.prompt] == [0, -0.25, -0.5, -0.75]
    assert [each.top and each.top[0].token_id for each in event.prompt] == [(), 1, 2, 3]
    assert event.text == "ab"
    answer.process(token(ord("c")))
    later = answer.next_event()
    assert later is not None and later.prompt == ()


@pytest.mark.parametrize("is_echoed", [True, False])
def test_what_is_not_echoed_tells_no_prompt(is_echoed: bool) -> None:
    answer = JobOutput(assignment(is_echoed=is_echoed), ByteTokenizer())
    assert bool(first_event(answer, token(ord("a"))).prompt) is is_echoed


def test_without_logprobs_the_prompt_is_told_and_the_engine_is_not_asked() -> None:
    given = assignment(num_logprobs=None)
    event = first_event(JobOutput(given, ByteTokenizer()), StepOutput("fence", 97, "length"))
    assert [each.chosen.logprob for each in event.prompt] == [0, 0, 0, 0]
    assert not make_sequence(given, PROMPT, context_length=99).has_prompt_logprobs
    assert make_sequence(assignment(), PROMPT, context_length=99).has_prompt_logprobs


def test_who_goes_on_with_a_log_does_not_tell_the_prompt_again() -> None:
    given = assignment(log=b"ab")
    event = first_event(JobOutput(given, ByteTokenizer()), token(ord("c")))
    assert (event.offset, event.prompt) == (2, ())
    assert not make_sequence(given, PROMPT, context_length=99).owes_prompt_logprobs


def test_the_space_that_a_tokenizer_puts_before_a_text_is_none_of_the_prompts() -> None:
    event = first_event(JobOutput(assignment(), LlamaLike()), token(ord("a"), LOGPROBS))
    assert b"".join(each.chosen.text for each in event.prompt) == b"Hi"


def test_an_answer_that_fails_before_its_first_token_tells_no_prompt() -> None:
    answer = JobOutput(assignment(), ByteTokenizer())
    answer.start(PROMPT)
    answer.fail(JobError(ErrorCode.INTERNAL_ERROR, "no"))
    event = answer.next_event()
    assert event is not None and event.prompt == ()


def test_of_a_prompt_without_an_answer_there_is_one_event() -> None:
    given = assignment()
    job = structs.replace(given.job, sampling=structs.replace(given.job.sampling, max_tokens=0))
    given = replace(given, job=job)
    assert make_sequence(given, PROMPT, context_length=99).max_new_tokens == 0
    answer = JobOutput(given, ByteTokenizer())
    event = first_event(answer, StepOutput("fence", finish="length", prompt_logprobs=LOGPROBS))
    assert event.final is not None and event.final.reason is FinishReason.LENGTH
    assert (event.token_ids, event.text, len(event.prompt)) == ((), "", 4)
    assert answer.next_event() is None


@pytest.mark.anyio
async def test_a_stream_handed_on_has_its_prompt_once(queue_url: str, client: JobClient) -> None:
    asking = {"form": "raw", "is_echoed": True, "num_logprobs": 2, "max_tokens": 12}
    async with running(queue_url, is_open=False) as run:
        job = await client.submit_messages([Message("user", ("Hi?",))], **asking)
        run.engine.let(3)
        await async_wait_until(lambda: len(client.token_ids(job)) == 3)
        assert await run.drain() == 0
    async with running(queue_url):
        assert (await client.wait_for_final(job)).reason is FinishReason.LENGTH
    told = [bool(event.prompt) for event in client.events[job]]
    assert told == [True, *[False] * (len(told) - 1)]
    prompt = client.events[job][0].prompt
    assert [each.chosen.token_id for each in prompt] == [BOS, *b"Hi?"]
    assert [each.chosen.logprob for each in prompt] == [0, -1 / 8, -2 / 8, -3 / 8]


@pytest.mark.anyio
async def test_a_worker_taken_away_before_the_first_token_leaves_the_prompt_to_the_next(
    queue_url: str, client: JobClient
) -> None:
    asking = {"form": "raw", "is_echoed": True, "num_logprobs": 0, "max_tokens": 0}
    async with running(queue_url, is_open=False) as run:
        job = await client.submit_messages([Message("user", ("Hi?",))], **asking)
        await async_wait_until(lambda: run.engine.num_sequences == 1)
        assert await run.drain() == 0
    assert client.events[job] == []
    async with running(queue_url):
        await client.wait_for_final(job)
    (event,) = client.events[job]
    assert (len(event.prompt), event.token_ids) == (4, ())
