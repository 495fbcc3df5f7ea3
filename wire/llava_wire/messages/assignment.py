"""An assignment: a job that one worker runs, together with the log that it continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_wire.messages.job import Job

__all__ = ["Assignment"]


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job as pulled. ``assignment_id`` is a fencing token: only its holder may write to the job's log.

    ``token_ids`` and ``text`` are what earlier workers have emitted: continue from there, at offset
    ``len(token_ids)``. ``pixels`` maps each digest of ``job.images`` to its tiles. ``remaining_s`` is the
    time from the pull to the job's deadline; None if unknown. ``trace`` is the W3C traceparent of the
    submitter; empty without tracing.
    """

    job: Job
    assignment_id: str
    token_ids: tuple[int, ...]
    text: str
    pixels: Mapping[str, bytes]
    remaining_s: float | None = None
    trace: str = ""
