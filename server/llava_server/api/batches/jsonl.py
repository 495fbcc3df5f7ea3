"""A batch's file: one request a line, judged whole before any of it runs; and what is written of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from llava_wire.stores.batches import BatchIssue

from llava_server.api.batches.request import BatchLine
from llava_server.api.parse import parse_request
from llava_server.error_response import to_error
from llava_server.errors import ApiError

__all__ = ["answered", "judged", "lines_of", "refused", "unanswered"]

_MAX_ISSUES = 50
_CODES = {"invalid_json": "invalid_json_line", "missing_required_parameter": "missing_required_parameter"}


def lines_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number from 1, and text, of each line that is not empty."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, line


def judged(data: bytes, *, max_lines: int, max_line_bytes: int) -> tuple[int, tuple[BatchIssue, ...]]:
    """How many requests there are, and what is wrong with them; the requests' own fields are judged later."""
    issues: list[BatchIssue] = []
    seen: dict[str, int] = {}
    num_lines = 0
    for number, line in lines_of(data):
        num_lines += 1
        if len(issues) < _MAX_ISSUES:
            issues += _issues_of(number, line, seen, max_line_bytes)
    if not num_lines:
        issues.append(BatchIssue("empty_file", "the file has no requests: write one a line"))
    if num_lines > max_lines:
        text = f"the file has {num_lines} requests; the limit is {max_lines}: make several batches of it"
        issues.insert(0, BatchIssue("too_many_tasks", text))
    return num_lines, tuple(issues[:_MAX_ISSUES])


def answered(batch_id: str, number: int, custom_id: str, request_id: str, body: dict[str, Any]) -> bytes:
    """The line of the output file."""
    response = {"status_code": 200, "request_id": request_id, "body": body}
    return _written(batch_id, number, custom_id, response, None)


def refused(batch_id: str, number: int, custom_id: str, request_id: str, error: ApiError) -> bytes:
    """The line of the error file for a request that was answered with an error."""
    body = msgspec.to_builtins(to_error(error, request_id))
    response = {"status_code": error.kind.status, "request_id": request_id, "body": body}
    return _written(batch_id, number, custom_id, response, None)


def unanswered(batch_id: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """The line of the error file for a request that was not sent."""
    return _written(batch_id, number, custom_id, None, {"code": code, "message": message})


def _written(
    batch_id: str, number: int, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None
) -> bytes:
    line = {"id": f"batch_req_{batch_id.removeprefix('batch_')}_{number}", "custom_id": custom_id}
    whole = {**line, "response": response, "error": error}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _issues_of(number: int, line: bytes, seen: dict[str, int], max_bytes: int) -> list[BatchIssue]:
    if len(line) > max_bytes:
        text = f"the line has {len(line)} bytes; the limit is {max_bytes}: send fewer or smaller pictures"
        return [BatchIssue("line_too_long", text, number)]
    try:
        request = parse_request(BatchLine, line)
    except ApiError as error:
        code = _CODES.get(error.code, error.code)
        return [BatchIssue(code, error.message.replace("the body", "the line"), number, error.param)]
    first = seen.setdefault(request.custom_id, number)
    if first != number:
        text = f"custom_id {request.custom_id[:60]!a} is that of line {first} already: give each its own"
        return [BatchIssue("duplicate_custom_id", text, number, "custom_id")]
    return []
