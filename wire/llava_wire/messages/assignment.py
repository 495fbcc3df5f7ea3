"""An assignment: a job in the hands of one worker, together with the log it continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_wire.messages.job import Job

__all__ = ["Assignment"]


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job as pulled. ``assignment_id`` is the fence: only its holder may write to the job's log.

    ``token_ids`` and ``text`` are what earlier workers have emitted: continue from there, at offset
    ``len(token_ids)``. ``pixels`` maps each digest of ``job.images`` to its tiles. ``left_s`` is what the
    pull found left of the job's life; None where that is not known. ``trace`` is the W3C traceparent of who
    submitted it; empty where nobody traces.
    """

    job: Job
    assignment_id: str
    token_ids: tuple[int, ...]
    text: str
    pixels: Mapping[str, bytes]
    left_s: float | None = None
    trace: str = ""
