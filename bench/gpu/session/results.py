"""The results of a session: one JSON object per line, written as soon as it is known.

Each line contains the stage, the name of the measurement, its status, the seconds since the measurement
started, and either values or a message:

    started   the measurement has started. If this is its last line, its process exited or was killed.
    value     one result. A measurement can have any number of them.
    done      the measurement has ended
    failed    a check found a wrong result, or the device reported an error
    error     the measurement raised another exception, crashed or reached its time limit
    not run   there was not enough time
    skipped   the measurement does not apply to this machine
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["ENDS", "Line", "Results", "Status"]

Status = Literal["started", "value", "done", "failed", "error", "not run", "skipped"]
ENDS: tuple[Status, ...] = ("done", "failed", "error", "not run", "skipped")


@dataclass(frozen=True, slots=True)
class Line:
    stage: str
    name: str
    status: Status
    seconds: float
    values: dict[str, Any]
    message: str


def _parse(text: str) -> Line | None:
    """Return None for a line that a process did not write completely before it was killed."""
    try:
        return Line(**{"values": {}, "message": "", **json.loads(text)})
    except ValueError:
        return None


class Results:
    """The file of results in a folder. The processes of a session append to it one at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"

    def add(
        self,
        stage: str,
        name: str,
        status: Status,
        *,
        seconds: float = 0.0,
        values: dict[str, Any] | None = None,
        message: str = "",
    ) -> None:
        """Append a line and write it to disk."""
        fields = {"stage": stage, "name": name, "status": status, "seconds": round(seconds, 3)}
        fields |= {key: value for key, value in (("values", values), ("message", message)) if value}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(fields, ensure_ascii=False)}\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self, stage: str | None = None) -> Iterator[Line]:
        """Yield all lines, or those of one stage, in the order in which they were written."""
        if not self.path.exists():
            return
        for text in self.path.read_text("utf-8", "replace").splitlines():
            line = _parse(text)
            if line is not None and stage in (None, line.stage):
                yield line

    def values(self, stage: str) -> dict[str, Any]:
        """Return the values of a stage, merged into one dictionary."""
        merged: dict[str, Any] = {}
        for line in self.lines(stage):
            merged |= line.values
        return merged

    def ended(self, stage: str) -> set[str]:
        """Return the names of the measurements that have ended."""
        return {line.name for line in self.lines(stage) if line.status in ENDS}

    def unfinished(self, stage: str) -> set[str]:
        """Return the names of the measurements that have started but not ended."""
        return {line.name for line in self.lines(stage)} - self.ended(stage)
