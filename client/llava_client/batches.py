"""Batch input files, batch states and batch results. The only I/O is reading an input file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx2
from pydantic import ConfigDict, Field

from llava_client.chat_request import CHAT_PATH, ChatOptions, chat_body
from llava_client.errors import APIError, api_error
from llava_client.images import Images
from llava_client.json_body import encode_json
from llava_client.parse_response import read_answer
from llava_client.types import Answer, ResponseModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Batch",
    "BatchCounts",
    "BatchIssue",
    "BatchRequests",
    "BatchResult",
    "batch_file",
    "batch_request",
    "lacks_model",
    "read_results",
]

BatchRequests: TypeAlias = "str | os.PathLike[str] | bytes | Iterable[Mapping[str, Any]]"

_OVER = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchCounts(ResponseModel):
    """Request counts for a batch: total, completed, and failed (rejected or not run)."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchIssue(ResponseModel):
    """A problem with the input file of a batch. Line numbers start at 1."""

    message: str = ""
    code: str = ""
    line: int | None = None
    param: str | None = None


class _Issues(ResponseModel):
    data: tuple[BatchIssue, ...] = ()


class Batch(ResponseModel):
    """A snapshot of a batch. Field names are the same as in OpenAI's API. Times are Unix timestamps."""

    id: str
    status: str
    request_counts: BatchCounts = Field(default_factory=BatchCounts)
    errors: _Issues | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int | None = None
    expires_at: int | None = None
    metadata: dict[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the batch has completed, failed, expired or been cancelled."""
        return self.status in _OVER

    @property
    def issues(self) -> tuple[BatchIssue, ...]:
        """The first 50 problems with the input file; empty unless ``status`` is "failed"."""
        return self.errors.data if self.errors else ()

    def checked(self) -> Batch:
        """Return this batch, or raise APIError if it failed. A failed batch has no results."""
        if self.status != "failed":
            return self
        reasons = " ".join(
            f"Line {issue.line}: {issue.message}" if issue.line else issue.message
            for issue in self.issues[:3]
        )
        reasons = reasons or "The input file no longer exists."
        raise APIError(f"Batch {self.id} failed. {reasons}", body=self.model_dump())


class BatchResult(ResponseModel):
    """The result of one request: either an ``answer`` or an ``error``.

    ``raw`` is the decoded line from the output or error file.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    custom_id: str
    answer: Answer | None = None
    error: APIError | None = None
    raw: dict[str, Any]


def batch_request(
    custom_id: str,
    question: str | None = None,
    *,
    image: Images = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    **options: Unpack[ChatOptions],
) -> dict[str, Any]:
    """Return a request for ``Client.submit_batch``.

    ``custom_id`` identifies the result and must be unique within the batch. The other arguments and the
    errors are the same as for ``Client.chat``.
    """
    body = chat_body(question, image, messages, options)
    return {"custom_id": custom_id, "method": "POST", "url": CHAT_PATH, "body": body}


def lacks_model(requests: BatchRequests) -> bool:
    """Return whether any request is missing a model.

    Files are not inspected, because they are sent unchanged.
    """
    if isinstance(requests, (str, os.PathLike, bytes)):
        return False
    return any("model" not in request.get("body", {}) for request in requests)


def batch_file(requests: BatchRequests, model: str | None) -> bytes:
    """Return the JSONL data to upload. Add ``model`` to requests that do not specify one.

    Raises OSError if the file cannot be read.
    """
    if isinstance(requests, bytes):
        return requests
    if isinstance(requests, (str, os.PathLike)):
        return Path(requests).read_bytes()
    lines = ({**line, "body": {"model": model, **line.get("body", {})}} for line in requests)
    return b"".join(encode_json(line) + b"\n" for line in lines)


def read_results(data: bytes) -> Iterator[BatchResult]:
    """Yield the results from an output or error file, in file order."""
    for line in data.splitlines():
        yield _parse_result(json.loads(line))


def _parse_result(raw: dict[str, Any]) -> BatchResult:
    custom_id, answered = str(raw.get("custom_id", "")), raw.get("response")
    if answered is None:
        return BatchResult(custom_id=custom_id, error=api_error({"error": raw.get("error")}), raw=raw)
    response = httpx2.Response(
        answered["status_code"],
        headers={"x-request-id": str(answered.get("request_id", ""))},
        content=encode_json(answered["body"]),
        request=httpx2.Request("POST", CHAT_PATH),
    )
    try:
        return BatchResult(custom_id=custom_id, answer=read_answer(response), raw=raw)
    except APIError as error:
        return BatchResult(custom_id=custom_id, error=error, raw=raw)
