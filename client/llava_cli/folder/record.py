"""The result for one image: a line of the results file and a row of the CSV and Parquet files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from llava_client.json_body import encode_json

__all__ = ["COLUMNS", "Record", "Request", "parse_record"]


@dataclass(frozen=True)
class Request:
    """What is sent with each image. ``settings`` contains only the options that were set."""

    prompt: str
    model: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The response for an image, or the error because of which there is none.

    ``text`` and ``finish_reason`` are None if ``error`` is set, and vice versa. ``size`` (in bytes),
    ``modified_ns`` and ``sha256`` identify the version of the file. They are None if it could not be read.
    """

    image: str
    text: str | None
    finish_reason: str | None
    error: str | None
    model: str
    prompt: str
    settings: dict[str, Any]
    size: int | None
    modified_ns: int | None
    sha256: str | None

    @property
    def request(self) -> Request:
        """What was sent with the image."""
        return Request(self.prompt, self.model, self.settings)

    def line(self) -> bytes:
        """Return the record as one line of JSON in UTF-8, including the newline."""
        return encode_json(asdict(self)) + b"\n"


COLUMNS = tuple(field.name for field in fields(Record))
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("image", "model", "prompt"), (str,)),
    **dict.fromkeys(("text", "finish_reason", "error", "sha256"), (str, type(None))),
    **dict.fromkeys(("size", "modified_ns"), (int, type(None))),
    "settings": (dict,),
}


def parse_record(line: bytes) -> Record | None:
    """Return the record that a line contains, or None if the line was not written by ``Record.line``."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or values.keys() != _TYPES.keys():
        return None
    if not all(isinstance(values[name], types) for name, types in _TYPES.items()):
        return None
    return Record(**values)
