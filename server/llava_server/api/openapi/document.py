"""What the OpenAPI document says of bodies that we read and write ourselves: FastAPI does not see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from llava_server.api.openapi.error import Error
from llava_server.api.openapi.examples import add_examples
from llava_server.api.openapi.headers import HEADERS, STREAM, header_parameter, headers_of

__all__ = ["answers_with", "body_of", "described", "failing_with", "with_headers"]

_REF = "#/components/schemas/{model}"
_STATUSES = (400, 401, 404, 408, 409, 413, 415, 429, 500, 503, 504)
_JSON, _EVENTS = "application/json", "text/event-stream"
_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The key, as OpenAI's clients send it: Authorization: Bearer KEY.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The key, as Anthropic's clients send it. Two keys that differ are refused.",
    },
}

_MEANINGS = {
    400: "The request is wrong",
    401: "A valid key is needed",
    404: "There is no such thing",
    408: "It took too long to come or to begin",
    409: "It is not possible as things stand",
    413: "The body is too large",
    415: "The body is of a wrong kind",
    429: "The key is over a limit",
    500: "Something broke here",
    503: "Not now",
    504: "It took too long",
}

_FILE_UPLOAD = {
    "title": "FileUpload",
    "type": "object",
    "description": "A file for a batch.",
    "required": ["file", "purpose"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "JSONL: one request a line, see docs/batches.md.",
            "examples": ["requests.jsonl"],
        },
        "purpose": {"type": "string", "enum": ["batch"], "description": "What it is for."},
    },
}

_SHAPES: dict[str, type[BaseModel]] = {}  # of requests and answers, by name


def body_of(model: type[BaseModel], *, headers: Sequence[str] = ()) -> dict[str, Any]:
    """A route's ``openapi_extra`` for this request."""
    content = {_JSON: {"schema": _ref(model)}}
    return {"requestBody": {"required": True, "content": content}, **with_headers(*headers)}


def with_headers(*names: str) -> dict[str, Any]:
    """A route's ``openapi_extra`` for these headers of the request."""
    return {"parameters": [header_parameter(name) for name in names]} if names else {}


def answers_with(
    model: type[BaseModel] | str,
    description: str,
    *,
    stream: Sequence[type[BaseModel]] = (),
    statuses: Sequence[int] = _STATUSES,
    error: type[BaseModel] = Error,
    headers: Sequence[str] = (),
) -> dict[int | str, dict[str, Any]]:
    """A route's ``responses``: its answer (of this model, or bytes of this media type) and every error.

    ``stream``: the answer may be a stream, each of whose events has data of one of these models. ``headers``:
    what it carries beside what every answer does.
    """
    media: dict[str, Any] = {}
    if isinstance(model, str):
        media[model] = {"schema": {"type": "string", "format": "binary"}}
    else:
        media[_JSON] = {"schema": _ref(model)}
    if stream:
        events = [_ref(each) for each in stream]
        media[_EVENTS] = {"schema": events[0] if len(events) == 1 else {"anyOf": events}}
        headers = (*headers, *STREAM)
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": description, "content": media, "headers": _told(headers)}
    }
    for status in statuses:
        answers |= failing_with(error, status, f"{_MEANINGS[status]}: error.code says why.")
    return answers


def failing_with(model: type[BaseModel], status: int, description: str) -> dict[int | str, dict[str, Any]]:
    """Of a route's ``responses`` one that is no success."""
    return {status: {"description": description, "content": {_JSON: {"schema": _ref(model)}}}}


def described(
    document: dict[str, Any], *, needs_key: Callable[[str], bool] = lambda _path: False
) -> dict[str, Any]:
    """The document with all shapes and headers, and without FastAPI's own error, which nobody gets to see."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(_schemas())
    components["headers"] = dict(HEADERS)
    components["securitySchemes"] = _SECURITY
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            for status, answer in operation["responses"].items():
                answer.setdefault("headers", {}).update(_told(headers_of(method, int(status))))
            everywhere = ("X-Request-Id", "traceparent") if path.startswith("/v1/") else ("X-Request-Id",)
            operation.setdefault("parameters", []).extend(header_parameter(name) for name in everywhere)
            if needs_key(path):
                operation["security"] = [{name: []} for name in _SECURITY]
    return document


def _told(headers: Sequence[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    if _SHAPES.setdefault(model.__name__, model) is not model:
        raise ValueError(f"two shapes are named {model.__name__}")
    return {"$ref": _REF.format(model=model.__name__)}


@cache  # once a process, however many apps it has; nobody changes them
def _schemas() -> dict[str, Any]:
    """Of requests and answers, and of what they are made of."""
    schemas: dict[str, Any] = {"FileUpload": _FILE_UPLOAD}
    for name, model in _SHAPES.items():
        schema = model.model_json_schema(ref_template=_REF)
        for own_name, own in {**schema.pop("$defs", {}), name: schema}.items():
            if schemas.setdefault(own_name, own) != own:
                raise ValueError(f"two shapes are named {own_name}")
    add_examples(schemas)
    return schemas
