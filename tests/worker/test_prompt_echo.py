"""An echoed prompt is sent exactly once, in full and in the first event, even if the job is resumed."""

from __future__ import annotations

import pytest
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode, Event, FinishReason, JobError
from llava_wire.messages.job import Message
from llava_worker.engine import StepOutput, TokenLogprobs
from llava_worker.job_output import JobOutput
from llava_worker.job_sequence import make_sequence
from llava_worker.language.prompt_builder import Prompt
from llava_worker.language.tokenizer import ByteTokenizer

from tests.waiting import async_wait_until
from tests.worker.assignments import ASSIGNMENT_ID, make_assignment, make_job
from tests.worker.job_client import JobClient
from tests.worker.running_worker import running_worker

BOS = ByteTokenizer.bos_token_id
PROMPT = Prompt([BOS, *b" Hi"])
PROMPT_LOGPROBS = tuple(TokenLogprobs(-index / 4, ((index, -0.1),)) for index in (1, 2, 3))


class SpacePrefixTokenizer(ByteTokenizer):
    strips_leading_space = True


def assign(
    *, log: bytes = b"", is_echoed: bool = True, num_logprobs: int | None = 1, max_tokens: int | None = None
) -> Assignment:
    sampling = {"num_logprobs": num_logprobs, "max_tokens": max_tokens}
    job = make_job(Message("user", (" Hi",)), sampling=sampling, form="raw", is_echoed=is_echoed)
    return make_assignment(job, log=log)


def first_event(output: JobOutput, *step_outputs: StepOutput) -> Event:
    output.start(PROMPT)
    for step_output in step_outputs:
        output.process(step_output)
    event = output.next_event()
    assert event is not None
    return event


def token(token_id: int, prompt_logprobs: tuple[TokenLogprobs, ...] = ()) -> StepOutput:
    return StepOutput(ASSIGNMENT_ID, token_id, logprobs=TokenLogprobs(-9.0), prompt_logprobs=prompt_logprobs)


def test_prompt_is_in_the_first_event_only() -> None:
    output = JobOutput(assign(), ByteTokenizer())
    event = first_event(output, token(ord("a"), PROMPT_LOGPROBS), token(ord("b")))
    assert [entry.sampled.token_id for entry in event.prompt] == PROMPT.token_ids
    assert [entry.sampled.text for entry in event.prompt] == [b"", b" ", b"H", b"i"]
    assert [entry.sampled.logprob for entry in event.prompt] == [0, -0.25, -0.5, -0.75]
    assert [entry.top and entry.top[0].token_id for entry in event.prompt] == [(), 1, 2, 3]
    assert event.text == "ab"
    output.process(token(ord("c")))
    later = output.next_event()
    assert later is not None and later.prompt == ()


def test_prompt_is_echoed_only_on_request() -> None:
    for is_echoed in (True, False):
        output = JobOutput(assign(is_echoed=is_echoed), ByteTokenizer())
        assert bool(first_event(output, token(ord("a"))).prompt) is is_echoed


def test_echo_without_logprobs_computes_none() -> None:
    assignment = assign(num_logprobs=None)
    event = first_event(JobOutput(assignment, ByteTokenizer()), StepOutput(ASSIGNMENT_ID, 97, "length"))
    assert [entry.sampled.logprob for entry in event.prompt] == [0, 0, 0, 0]
    assert make_sequence(assignment, PROMPT, context_length=99).num_prompt_logprobs is None
    assert make_sequence(assign(), PROMPT, context_length=99).num_prompt_logprobs == 1


def test_resumed_output_does_not_repeat_the_prompt() -> None:
    assignment = assign(log=b"ab")
    event = first_event(JobOutput(assignment, ByteTokenizer()), token(ord("c")))
    assert (event.offset, event.prompt) == (2, ())
    assert not make_sequence(assignment, PROMPT, context_length=99).needs_prompt_logprobs


def test_space_added_by_the_tokenizer_is_not_part_of_the_prompt() -> None:
    event = first_event(JobOutput(assign(), SpacePrefixTokenizer()), token(ord("a"), PROMPT_LOGPROBS))
    assert b"".join(entry.sampled.text for entry in event.prompt) == b"Hi"


def test_output_that_fails_before_its_first_token_has_no_prompt() -> None:
    output = JobOutput(assign(), ByteTokenizer())
    output.start(PROMPT)
    output.fail(JobError(ErrorCode.INTERNAL_ERROR, "no"))
    event = output.next_event()
    assert event is not None and event.prompt == ()


def test_echo_without_generated_tokens_is_one_event() -> None:
    output = JobOutput(assign(max_tokens=0), ByteTokenizer())
    step_output = StepOutput(ASSIGNMENT_ID, finish="length", prompt_logprobs=PROMPT_LOGPROBS)
    event = first_event(output, step_output)
    assert event.final is not None and event.final.reason is FinishReason.LENGTH
    assert (event.token_ids, event.text, len(event.prompt)) == ((), "", 4)
    assert output.next_event() is None


@pytest.mark.anyio
@pytest.mark.usefixtures("short_pulls")
async def test_stream_resumed_by_another_worker_has_its_prompt_once(
    queue_url: str, client: JobClient
) -> None:
    messages = [Message("user", ("Hi?",))]
    async with running_worker(queue_url, is_stepped=True) as running:
        job = await client.submit_messages(
            messages, form="raw", is_echoed=True, num_logprobs=2, max_tokens=12
        )
        running.engine.allow_steps(3)
        await client.wait_for_tokens(job, 3)
        assert await running.drain() == 0
    async with running_worker(queue_url):
        assert (await client.wait_for_final(job)).reason is FinishReason.LENGTH
    first, *later = client.events[job]
    assert [entry.sampled.token_id for entry in first.prompt] == [BOS, *b"Hi?"]
    assert [entry.sampled.logprob for entry in first.prompt] == [0, -1 / 8, -2 / 8, -3 / 8]
    assert not any(event.prompt for event in later)


@pytest.mark.anyio
@pytest.mark.usefixtures("short_pulls")
async def test_prompt_of_a_job_requeued_before_its_first_token_is_sent_by_the_next_worker(
    queue_url: str, client: JobClient
) -> None:
    messages = [Message("user", ("Hi?",))]
    async with running_worker(queue_url, is_stepped=True) as running:
        job = await client.submit_messages(messages, form="raw", is_echoed=True, num_logprobs=0, max_tokens=0)
        await async_wait_until(lambda: running.engine.num_sequences == 1)
        assert await running.drain() == 0
    assert client.events[job] == []
    async with running_worker(queue_url):
        await client.wait_for_final(job)
    [event] = client.events[job]
    assert (len(event.prompt), event.token_ids) == (4, ())
