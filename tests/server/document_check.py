"""Check responses against the OpenAPI document: the status, the headers, and the body or each event."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
import jsonschema
from llava_server.middleware.response_headers import RESPONSE_HEADERS

from tests.server.openapi_document import DOCUMENT

__all__ = ["error_of", "violations", "violations_of", "operation_of"]

# Headers of every HTTP response or of every response to a web page, which the document omits.
PLAIN = {"content-type", "content-length", "date", "server", "connection", "transfer-encoding", "allow"}
PLAIN |= RESPONSE_HEADERS.keys()
PLAIN |= {"vary", "access-control-allow-origin", "access-control-expose-headers"}


def violations(response: httpx2.Response) -> list[str]:
    """Return every way in which a complete response violates the document."""
    operation = operation_of(response.request.method, response.request.url.path)
    if operation is None:
        return ["the route is not in the document"]
    documented_response = operation["responses"].get(str(response.status_code))
    if documented_response is None:
        return [f"status {response.status_code} is not in the document"]
    return [
        *_header_violations(response, documented_response),
        *_body_violations(response, documented_response),
    ]


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the error in a response. In Ollama's format, its fields are next to the message."""
    body: dict[str, Any] = response.json()
    error: dict[str, Any] | str = body["error"]
    return {**body, "message": error} if isinstance(error, str) else error


def violations_of(value: Any, schema: dict[str, Any]) -> list[str]:
    """Return every way in which a value violates a schema."""
    return [
        f"{error.json_path}: {error.message[:300]}"
        for error in _validator(json.dumps(schema)).iter_errors(value)
    ]


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """Return the operation in the document that matches a request, or None if there is none."""
    for pattern, operations in _PATHS:
        if pattern.fullmatch(path) and method.lower() in operations:
            operation: dict[str, Any] = operations[method.lower()]
            return operation
    return None


def _pattern(path: str) -> re.Pattern[str]:
    steps = re.sub(r"\\\{(\w+)\\\}", lambda name: ".*" if name[1] == "model_id" else "[^/]+", re.escape(path))
    return re.compile(steps, re.DOTALL)


_PATHS = [(_pattern(path), operations) for path, operations in sorted(DOCUMENT["paths"].items())]


def _header_violations(response: httpx2.Response, documented_response: dict[str, Any]) -> Iterator[str]:
    documented = documented_response.get("headers", {})
    for name in response.headers.keys() - PLAIN:
        if name not in documented:
            yield f"header {name} is not in the document"
            continue
        header = DOCUMENT["components"]["headers"][documented[name]["$ref"].rpartition("/")[2]]
        text = response.headers[name]
        is_number = header["schema"]["type"] in ("integer", "number")
        yield from (
            f"header {name}: {each}"
            for each in violations_of(json.loads(text) if is_number else text, header["schema"])
        )


def _body_violations(response: httpx2.Response, documented_response: dict[str, Any]) -> Iterator[str]:
    media_type = response.headers["content-type"].partition(";")[0]
    if media_type not in documented_response["content"]:
        yield f"{media_type} is not in the document"
        return
    schema = documented_response["content"][media_type]["schema"]
    if media_type == "application/json":
        yield from violations_of(response.json(), schema)
    elif media_type == "application/x-ndjson" and response.is_stream_consumed:
        for line in response.text.splitlines():
            yield from violations_of(json.loads(line), schema)
    elif media_type == "text/event-stream" and response.is_stream_consumed:
        for block in response.text.split("\n\n"):
            fields = dict(
                line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")
            )
            if fields.get("data", "[DONE]") != "[DONE]":
                event = json.loads(fields["data"])
                yield from violations_of(event, schema)
                if fields.get("event", event.get("type")) != event.get("type"):
                    yield f"an event named {fields['event']} is of type {event['type']}"


@cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**json.loads(schema), "components": DOCUMENT["components"]})
