"""What the OpenAPI document says of bodies that we parse ourselves: FastAPI does not see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from llava_server.examples import add_examples

__all__ = ["answers_with", "body_of", "described"]

_REF = "#/components/schemas/{model}"
_STATUSES = (400, 401, 404, 408, 409, 413, 415, 429, 500, 503, 504)
_ERROR = {
    "description": "What is wrong, in OpenAI's shape: error.code, error.message, error.param.",
    "content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}},
}
_KIND, _CODE = "invalid_request_error", "invalid_value"
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
            "examples": [{"message": "top_p: ... (got 2)", "type": _KIND, "param": "top_p", "code": _CODE}],
            "properties": {
                "message": {
                    "type": "string",
                    "description": "For people: what, the value, the limit.",
                    "examples": ["top_p: input should be less than or equal to 1 (got 2)"],
                },
                "type": {
                    "type": "string",
                    "description": "The kind of error, in OpenAI's words.",
                    "examples": [_KIND],
                },
                "param": {
                    "type": ["string", "null"],
                    "description": "The field that is to blame.",
                    "examples": ["top_p"],
                },
                "code": {
                    "type": "string",
                    "description": "For programs; never changes its status.",
                    "examples": [_CODE],
                },
                "request_id": {
                    "type": ["string", "null"],
                    "description": "The id in this server's log.",
                    "examples": ["req-9855bf8261138516bd52469d"],
                },
                "doc": {
                    "type": "string",
                    "description": "The page that says more.",
                    "examples": [f"docs/errors.md#{_CODE}"],
                },
                "retry_after_ms": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 86_400_000,
                    "description": "When to come again, milliseconds; only where waiting helps.",
                    "examples": [1500],
                },
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
    add_examples(schemas)
    return schemas
