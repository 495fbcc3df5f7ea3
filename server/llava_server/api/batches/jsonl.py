"""Batch JSONL files: validate the input file, and create lines for the output and error files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from llava_wire.stores.batches import BatchIssue, BatchSpec

from llava_server.api.batches.request import BatchEndpoint, BatchLine
from llava_server.api.parse import parse_request
from llava_server.error_response import to_error
from llava_server.errors import ApiError

__all__ = [
    "InputLine",
    "LineResult",
    "check_input",
    "completed_result",
    "failed_result",
    "read_requests",
    "skipped_result",
]

_MAX_ISSUES = 50
_ISSUE_CODES = {"invalid_json": "invalid_json_line"}  # other codes are the same as in ApiError


class InputLine(NamedTuple):
    """A request in a batch. ``number`` is its line number in the input file, starting at 1.

    ``body`` is JSON, which is parsed when the request runs: the objects for a whole file would need much more
    memory than its text.
    """

    batch: BatchSpec
    number: int
    custom_id: str
    url: BatchEndpoint
    body: bytes

    @property
    def request_id(self) -> str:
        """Return the ID that identifies the request in the results.

        The ID is also the idempotency key, so every server derives the same job IDs from it.
        """
        return f"{self.batch.batch_id}:{self.number}"


class LineResult(NamedTuple):
    """The result of a request: a line in the output file, or in the error file if the request failed."""

    is_completed: bool
    text: bytes

    def pack(self) -> bytes:
        """Encode the result for storage until the batch ends."""
        return (b"+" if self.is_completed else b"-") + self.text

    @classmethod
    def unpack(cls, stored: bytes) -> LineResult:
        return cls(stored[:1] == b"+", stored[1:])


def read_requests(batch: BatchSpec, data: bytes) -> list[InputLine]:
    """Return the requests in a file that ``check_input`` has accepted."""
    lines = []
    for number, text in read_lines(data):
        request = parse_request(BatchLine, text)
        body = json.dumps(request.body).encode()
        lines.append(InputLine(batch, number, request.custom_id, request.url, body))
    return lines


def read_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the line number (starting at 1) and the text of each non-empty line."""
    for number, text in enumerate(data.split(b"\n"), 1):
        if text.strip():
            yield number, text


def check_input(
    data: bytes, *, endpoint: str, max_lines: int, max_line_bytes: int
) -> tuple[int, tuple[BatchIssue, ...]]:
    """Return the number of requests in the file and the errors found. Request bodies are validated later."""
    issues: list[BatchIssue] = []
    first_lines: dict[str, int] = {}  # custom_id -> line number
    num_lines = 0
    for number, text in read_lines(data):
        num_lines += 1
        if len(issues) < _MAX_ISSUES:
            issues += _check_line(number, text, first_lines, endpoint, max_line_bytes)
    if not num_lines:
        issues.append(BatchIssue("empty_file", "The file contains no requests. Write one request per line."))
    if num_lines > max_lines:
        message = f"The file contains {num_lines} requests; the limit is {max_lines}. Split the file."
        issues.insert(0, BatchIssue("too_many_tasks", message))
    return num_lines, tuple(issues[:_MAX_ISSUES])


def completed_result(line: InputLine, body: bytes) -> LineResult:
    """Return the result for a request that completed with this JSON text as its response."""
    return LineResult(True, _result_line(line, response=_response(line, 200, body)))


def failed_result(line: InputLine, error: ApiError) -> LineResult:
    """Return the result for a request that failed."""
    body = msgspec.json.encode(to_error(error, line.request_id))
    return LineResult(False, _result_line(line, response=_response(line, error.kind.status, body)))


def skipped_result(line: InputLine, code: str, message: str) -> LineResult:
    """Return the result for a request that was skipped or interrupted."""
    return LineResult(False, _result_line(line, error={"code": code, "message": message}))


def _response(line: InputLine, status: int, body: bytes) -> dict[str, Any]:
    return {"status_code": status, "request_id": line.request_id, "body": msgspec.Raw(body)}


def _result_line(
    line: InputLine, *, response: dict[str, Any] | None = None, error: dict[str, str] | None = None
) -> bytes:
    result = {
        "id": f"batch_req_{line.batch.batch_id.removeprefix('batch_')}_{line.number}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(result) + b"\n"


def _check_line(
    number: int, text: bytes, first_lines: dict[str, int], endpoint: str, max_line_bytes: int
) -> list[BatchIssue]:
    num_bytes = len(text)
    if num_bytes > max_line_bytes:
        too_long = (
            f"The line is {num_bytes} bytes; the limit is {max_line_bytes}. Send fewer or smaller images."
        )
        return [BatchIssue("line_too_long", too_long, number)]
    try:
        request = parse_request(BatchLine, text)
    except ApiError as error:
        code = _ISSUE_CODES.get(error.code, error.code)
        message = error.message.replace("The request body", "The line")
        return [BatchIssue(code, message, number, error.param)]
    if request.url != endpoint:
        wrong_url = f"url must be {endpoint!a}, the endpoint of the batch (got {request.url!a})."
        return [BatchIssue("invalid_value", wrong_url, number, "url")]
    first_line = first_lines.setdefault(request.custom_id, number)
    if first_line != number:
        custom_id = request.custom_id[:60]
        duplicate = (
            f"custom_id {custom_id!a} is already used on line {first_line}. Use a unique ID for each request."
        )
        return [BatchIssue("duplicate_custom_id", duplicate, number, "custom_id")]
    return []
