"""The preparation of a job ends in a sequence, an output or an error, at the latest at its deadline."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import Message
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine import Sequence
from llava_worker.job_output import JobOutput
from llava_worker.job_preparation import JobPreparation
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.model.config.image_grid import ImageLayout

from tests.machine_speed import scaled
from tests.worker.assignments import make_assignment, make_job

pytestmark = pytest.mark.anyio


class BlockedTokenizer(ByteTokenizer):
    """A tokenizer that returns once ``release`` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def encode(self, text: str, *, is_first: bool = True) -> list[int]:
        assert self.release.wait(scaled(30))
        return super().encode(text, is_first=is_first)


async def prepare(
    tokenizer: BlockedTokenizer, *, remaining_s: float | None = None, **fields: Any
) -> tuple[JobOutput, Sequence | None]:
    prompts = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES["plain"],
        expander=TileExpander(ImageLayout(side=8, tokens_per_tile=4), tokenizer.image_token_id),
        context_length=100,
    )
    job = make_job(Message("user", ("Hi?",)), form="raw", **fields)
    output = JobOutput(make_assignment(job, remaining_s=remaining_s), tokenizer)
    preparation = JobPreparation(prompts, None, context_length=100)
    sequence = await preparation.prepare(output)
    tokenizer.release.set()
    preparation.close()
    return output, sequence


def error_of(output: JobOutput) -> tuple[ErrorCode, str | None]:
    event = output.next_event()
    assert event is not None and event.final is not None and event.final.error is not None
    return event.final.error.code, event.final.error.param


async def test_the_deadline_of_a_sequence_is_that_of_its_job() -> None:
    tokenizer = BlockedTokenizer()
    tokenizer.release.set()
    before_s = time.monotonic()
    _, sequence = await prepare(tokenizer, remaining_s=60.0)
    assert sequence is not None and sequence.deadline_s is not None
    assert before_s + 60 <= sequence.deadline_s <= time.monotonic() + 60
    _, sequence = await prepare(tokenizer)
    assert sequence is not None and sequence.deadline_s is None


async def test_a_job_fails_if_its_deadline_expires_during_the_preparation() -> None:
    output, sequence = await prepare(BlockedTokenizer(), remaining_s=0.01)
    assert sequence is None
    assert error_of(output)[0] is ErrorCode.DEADLINE_EXCEEDED


async def test_a_job_that_needs_no_model_is_finished_without_a_sequence() -> None:
    tokenizer = BlockedTokenizer()
    tokenizer.release.set()
    output, sequence = await prepare(tokenizer, task="tokenize")
    event = output.next_event()
    assert sequence is None and event is not None
    assert event.token_ids == (tokenizer.bos_token_id, *b"Hi?")


async def test_an_error_names_the_field_with_the_grammar() -> None:
    tokenizer = BlockedTokenizer()
    tokenizer.release.set()
    grammar = Grammar("regex", "a", param="guided_regex")
    output, sequence = await prepare(tokenizer, sampling={"grammar": grammar})
    assert sequence is None
    assert error_of(output) == (ErrorCode.INVALID_REQUEST, "guided_regex")
