"""Assignments: jobs assigned to workers, with the output so far that a worker continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_wire.messages.job import Job

__all__ = ["Assignment"]


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job that a worker has pulled.

    ``assignment_id`` is a fencing token: only its holder may write to the log of the job. ``token_ids`` and
    ``text`` are the output of earlier workers; generation continues at offset ``len(token_ids)``. ``pixels``
    maps each digest in ``job.images`` to its tiles. ``remaining_s`` is the time from the pull to the deadline
    of the job, or None if unknown. ``trace`` is the W3C traceparent of the submitter; empty if tracing is
    disabled.
    """

    job: Job
    assignment_id: str
    token_ids: tuple[int, ...]
    text: str
    pixels: Mapping[str, bytes]
    remaining_s: float | None = None
    trace: str = ""
