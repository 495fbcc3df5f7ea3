"""Log formats: text, or one JSON object per line. Log lines never contain prompts, images, URLs or keys.

A ``fields`` dict passed in ``extra`` adds fields to the JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

__all__ = ["JsonFormatter", "LogFormat", "configure_logging"]

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_INVALID_REQUEST = "Invalid HTTP request received."  # uvicorn's warning


class JsonFormatter(logging.Formatter):
    """A formatter that writes each record as one line of ASCII JSON and escapes control characters."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process: dict[str, int] = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str, log_format: LogFormat, *, process: int | None = None) -> None:
    """Send all log records to stderr in the given format.

    If ``process`` is set, each record contains this number of the controller, because several write to the
    same log.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = _TEXT if process is None else _TEXT.replace("%(name)s", f"%(name)s[{process}]")
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # A client could fill the log with them. ConnectionGuard counts them.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != _INVALID_REQUEST)
