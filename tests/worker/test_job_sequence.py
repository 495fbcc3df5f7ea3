"""The engine's input sequence for a job."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.job import ImageRef, Message
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.job_sequence import make_sequence
from llava_worker.language.prompt_builder import Prompt, PromptError
from msgspec import structs

from tests.worker.assignments import ASSIGNMENT_ID, make_assignment, make_job

IMAGE = ImageRef(digest="a", num_tiles=1, side=2, width=2, height=2)
PIXELS = bytes(2 * 2 * 3)
MESSAGE = Message("user", (IMAGE, "Hi?"))


def build(assignment: Assignment) -> Sequence:
    return make_sequence(assignment, Prompt(list(b"prompt"), [ImageSpan(0, 1, "a")]), context_length=100)


def assign(*, log: bytes = b"", **fields: Any) -> Assignment:
    return make_assignment(make_job(MESSAGE, **fields), log=log, pixels={"a": PIXELS})


def test_output_is_limited_by_the_job_and_by_the_context() -> None:
    for max_tokens, expected in ((None, 94), (10, 10), (1000, 94), (0, 0)):
        assert build(assign(sampling={"max_tokens": max_tokens})).max_new_tokens == expected


def test_sequence_has_the_jobs_parameters_and_log() -> None:
    assignment = assign(log=b"ab", sampling={"temperature": 0.5, "logit_bias": ((5, 1.0),)})
    sequence = build(assignment)
    assert (sequence.seq_id, sequence.cache_scope) == (ASSIGNMENT_ID, "tenant tenant")
    assert (sequence.output_ids, sequence.pixels) == ([97, 98], [PIXELS])
    assert (sequence.priority, sequence.deadline_s) == (0, None)
    assert sequence.sampling is assignment.job.sampling


def test_public_cache_scope_differs_from_the_scope_of_every_tenant() -> None:
    def scope(tenant: str, cache_scope: str) -> str:
        job = structs.replace(make_job(MESSAGE, cache_scope=cache_scope), tenant=tenant)
        return build(make_assignment(job, pixels={"a": PIXELS})).cache_scope

    assert scope("a", "public") == scope("b", "public")
    assert scope("a", "public") not in (scope("a", "tenant"), scope("public", "tenant"))


def test_pixels_of_another_size_are_rejected() -> None:
    for pixels in ({}, {"a": PIXELS + b"x"}):
        with pytest.raises(PromptError, match="bytes instead of 12"):
            build(make_assignment(make_job(MESSAGE), pixels=pixels))
