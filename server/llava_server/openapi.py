"""What the OpenAPI document says of bodies that we parse ourselves: FastAPI does not see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

__all__ = ["answers_with", "body_of", "described"]

_REF = "#/components/schemas/{model}"
_STATUSES = (400, 401, 404, 408, 409, 413, 415, 429, 500, 503, 504)
_ERROR = {
    "description": "What is wrong, in OpenAI's shape: error.code, error.message, error.param.",
    "content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}},
}
_ERROR_SCHEMA = {
    "title": "Error",
    "type": "object",
    "description": "Why there is no answer.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "description": "The error.",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string", "description": "For people: what, the value, the limit."},
                "type": {"type": "string", "description": "The kind of error, in OpenAI's words."},
                "param": {"type": ["string", "null"], "description": "The field that is to blame."},
                "code": {"type": "string", "description": "For programs; never changes its status."},
                "request_id": {"type": ["string", "null"], "description": "The id in this server's log."},
                "retry_after_ms": {"type": "integer", "description": "When to come again, milliseconds."},
            },
        }
    },
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

_REQUESTS: dict[str, type[BaseModel]] = {}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """A route's ``openapi_extra`` for this request."""
    _REQUESTS[model.__name__] = model
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answers_with(
    description: str, *, is_stream: bool = True, statuses: Sequence[int] = _STATUSES
) -> dict[int | str, dict[str, Any]]:
    """A route's ``responses``: its answer, which may be a stream, and every error that it may give."""
    media: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if is_stream:
        media["text/event-stream"] = {"schema": {"type": "string"}}
    answer = {"description": description, "content": media}
    return {200: answer, **{status: _ERROR for status in statuses}}


def described(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the requests, and without FastAPI's own error, which nobody gets to see."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(_request_schemas())
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    return document


def _request_schemas() -> dict[str, Any]:
    """The requests and what they are made of."""
    schemas: dict[str, Any] = {"Error": _ERROR_SCHEMA, "FileUpload": _FILE_UPLOAD}
    for name, model in _REQUESTS.items():
        schema = model.model_json_schema(ref_template=_REF)
        schemas |= {**schema.pop("$defs", {}), name: schema}
    return schemas
