"""Log lines: for people, or one JSON object each for machines. Neither holds prompts, pictures, URLs or keys.

A record may carry ``fields``, a dict of what the line is about; in JSON they are fields of the object.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

__all__ = ["JsonLines", "LogFormat", "set_up_logging"]

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One object a line, in ASCII: nothing in it can begin another line or move a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(level: str, form: LogFormat) -> None:
    """All lines of the process go to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
