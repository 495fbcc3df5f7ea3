"""Assignments: jobs assigned to workers, together with any output from earlier workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_wire.messages.job import Job

__all__ = ["Assignment"]


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job that a worker has pulled.

    ``assignment_id`` is a fencing token: only its holder may write to the job's log. ``token_ids`` and
    ``text`` are the output of earlier workers; generation continues at offset ``len(token_ids)``. ``pixels``
    contains the image tiles, keyed by digest. ``remaining_s`` is the time between the pull and the job's
    deadline, or None if unknown. ``trace`` is the submitter's W3C traceparent, or empty if tracing is
    disabled.
    """

    job: Job
    assignment_id: str
    token_ids: tuple[int, ...]
    text: str
    pixels: Mapping[str, bytes]
    remaining_s: float | None = None
    trace: str = ""
