"""The responses so far: JSON lines, which are also the checkpoint of an evaluation.

Each response is on the disk before lmms-eval receives it. An evaluation that is run again receives it from
this file, so no request is sent twice.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from llava_client.errors import ConfigurationError
from llava_client.json_body import encode_json

from llava_cli.append_line import append_line
from llava_cli.atomic_file import replacing

__all__ = ["ResponsesFile", "StoredResponse"]


@dataclass(frozen=True)
class StoredResponse:
    """``request`` is the digest of the request, ``number`` counts identical requests that are sampled."""

    request: str
    number: int
    text: str
    finish_reason: str | None


class ResponsesFile:
    """The responses by digest and number. Can be used by several threads."""

    def __init__(self, path: Path) -> None:
        """Read the file, which need not exist, and remove a last line that is incomplete.

        Raises OSError, or ConfigurationError if a line is not a response.
        """
        self.path = path
        self._lock = threading.Lock()
        self._responses: dict[tuple[str, int], StoredResponse] = {}
        content = path.read_bytes() if path.exists() else b""
        complete, _, rest = content.rpartition(b"\n")
        for number, line in enumerate(complete.splitlines(), 1):
            self._add(self._parse(line, number))
        if rest:  # the process was killed while it wrote the line
            with replacing(path) as temporary:
                temporary.write_bytes(complete + b"\n" if complete else b"")

    def __len__(self) -> int:
        return len(self._responses)

    def get(self, request: str, number: int) -> StoredResponse | None:
        with self._lock:
            return self._responses.get((request, number))

    def store(self, response: StoredResponse) -> None:
        """Append the response and wait until it is on the disk. Raises OSError."""
        with self._lock:
            append_line(self.path, encode_json(asdict(response)) + b"\n", is_synced=True)
            self._add(response)

    def _add(self, response: StoredResponse) -> None:
        self._responses[response.request, response.number] = response

    def _parse(self, line: bytes, number: int) -> StoredResponse:
        try:
            return StoredResponse(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"Line {number} of {str(self.path)!r} is not a response of this command. Use another --out."
            ) from error
