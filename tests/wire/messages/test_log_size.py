"""The space that is reserved for a job's log is enough for its events, one per token."""

from __future__ import annotations

import msgspec
import pytest
from llava_wire.messages.event import Event, Final, FinishReason, TokenLogprob, TokenScore
from llava_wire.messages.log_size import max_log_bytes
from llava_wire.messages.sampling_params import SamplingParams

from tests.wire.harness import make_job

NUM_TOKENS = 100


def logprob(num_top: int) -> TokenLogprob:
    score = TokenScore(31_999, b" average", -12.345)
    return TokenLogprob(score, (score,) * num_top)


@pytest.mark.parametrize("num_top", [None, 0, 1, 20])
@pytest.mark.parametrize("num_prompt_top", [None, 0, 20])
def test_the_reserved_space_is_enough_and_not_far_too_large(
    num_top: int | None, num_prompt_top: int | None
) -> None:
    sampling = SamplingParams(
        seed=1, max_tokens=NUM_TOKENS, num_logprobs=num_top, num_prompt_logprobs=num_prompt_top
    )
    job = make_job(sampling=sampling, context_length=4096)
    prompt = () if num_prompt_top is None else (logprob(num_prompt_top),) * 4096
    logprobs = () if num_top is None else (logprob(num_top),)
    events = [
        Event(
            offset,
            (31_999,),
            " average",
            None,
            logprobs,
            0,
            () if offset else prompt,
            "" if offset else "d" * 64,
        )
        for offset in range(NUM_TOKENS - 1)
    ]
    final = Final(reason=FinishReason.LENGTH, num_prompt_tokens=4096)
    events.append(Event(NUM_TOKENS - 1, (31_999,), " average", final, logprobs))
    size = sum(len(msgspec.msgpack.encode(event)) for event in events)
    assert size <= max_log_bytes(job) <= 2.5 * size + 1024


def test_an_unlimited_output_is_limited_by_the_context() -> None:
    job = make_job(context_length=1000)
    longer = make_job(context_length=1000, sampling=SamplingParams(seed=1, max_tokens=10**9))
    assert max_log_bytes(job) == max_log_bytes(longer) < 100_000


def test_nothing_is_reserved_if_the_context_is_unknown() -> None:
    assert max_log_bytes(make_job()) == 0
