"""Whether an answer is what the OpenAPI document says: status, headers, body or each event."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
import jsonschema

from tests.server.document import DOCUMENT

__all__ = ["misfits", "misfits_of", "operation_of"]

# What every HTTP answer has, whatever it is about; a 405 is none of a route's.
PLAIN = {"content-type", "content-length", "date", "server", "connection", "transfer-encoding"}


def misfits(response: httpx2.Response) -> list[str]:
    """What the document does not allow of an answer that has come whole; empty if all is well."""
    operation = operation_of(response.request.method, response.request.url.path)
    if operation is None:
        return ["the document has no such route"]
    answer = operation["responses"].get(str(response.status_code))
    if answer is None:
        return [f"status {response.status_code} is not in the document"]
    return [*_in_head(response, answer), *_in_body(response, answer)]


def misfits_of(value: Any, schema: dict[str, Any]) -> list[str]:
    """What a schema of the document does not allow of a value."""
    return [
        f"{error.json_path}: {error.message[:300]}"
        for error in _validator(json.dumps(schema)).iter_errors(value)
    ]


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """The document's part about a request; None where it has none."""
    for pattern, operations in _PATHS:
        if pattern.fullmatch(path) and method.lower() in operations:
            operation: dict[str, Any] = operations[method.lower()]
            return operation
    return None


def _pattern(path: str) -> re.Pattern[str]:
    steps = re.sub(r"\\\{(\w+)\\\}", lambda name: ".*" if name[1] == "model_id" else "[^/]+", re.escape(path))
    return re.compile(steps, re.DOTALL)


_PATHS = [(_pattern(path), operations) for path, operations in sorted(DOCUMENT["paths"].items())]


def _in_head(response: httpx2.Response, answer: dict[str, Any]) -> Iterator[str]:
    told = answer.get("headers", {})
    for name in response.headers.keys() - PLAIN:
        if name not in told:
            yield f"header {name} is not in the document"
            continue
        header = DOCUMENT["components"]["headers"][told[name]["$ref"].rpartition("/")[2]]
        text = response.headers[name]
        is_number = header["schema"]["type"] in ("integer", "number")
        yield from (
            f"header {name}: {each}"
            for each in misfits_of(json.loads(text) if is_number else text, header["schema"])
        )


def _in_body(response: httpx2.Response, answer: dict[str, Any]) -> Iterator[str]:
    media_type = response.headers["content-type"].partition(";")[0]
    if media_type not in answer["content"]:
        yield f"{media_type} is not in the document"
        return
    schema = answer["content"][media_type]["schema"]
    if media_type == "application/json":
        yield from misfits_of(response.json(), schema)
    elif media_type == "text/event-stream" and response.is_stream_consumed:
        for block in response.text.split("\n\n"):
            fields = dict(
                line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")
            )
            if fields.get("data", "[DONE]") != "[DONE]":
                event = json.loads(fields["data"])
                yield from misfits_of(event, schema)
                if fields.get("event", event.get("type")) != event.get("type"):
                    yield f"an event named {fields['event']} is of type {event['type']}"


@cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**json.loads(schema), "components": DOCUMENT["components"]})
