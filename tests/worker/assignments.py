"""Jobs and assignments for tests without a queue."""

from __future__ import annotations

from typing import Any

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.job import Job, Message
from llava_wire.messages.sampling_params import SamplingParams

ASSIGNMENT_ID = "assignment"


def make_job(*messages: Message, sampling: dict[str, Any] | None = None, **fields: Any) -> Job:
    return Job(
        job_id="job",
        model="echo",
        tenant="tenant",
        messages=messages,
        sampling=SamplingParams(**({"seed": 1} | (sampling or {}))),
        cost=1.0,
        **fields,
    )


def make_assignment(
    job: Job,
    *,
    log: bytes = b"",
    log_text: str | None = None,
    pixels: dict[str, bytes] | None = None,
    remaining_s: float | None = None,
) -> Assignment:
    """Return an assignment. ``log`` contains the logged tokens, one per byte.

    ``log_text`` is the logged text, by default the text of all logged tokens.
    """
    text = log.decode(errors="ignore") if log_text is None else log_text
    return Assignment(job, ASSIGNMENT_ID, tuple(log), text, pixels or {}, remaining_s=remaining_s)
