"""JSON schemas in requests: their limits, and the form in which they are sent to workers.

Workers reject or relax keywords that cannot be enforced. The server cannot check schemas itself because only
workers have the grammar library.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from llava_server.api.json_limits import JsonLimits, JsonTooLarge, check_json

__all__ = ["MAX_SCHEMA_BYTES", "Schema", "SchemaOrText", "as_text", "without_annotations"]

MAX_SCHEMA_BYTES = 64 << 10  # without annotations
_MAX_SCHEMA_DEPTH = 64  # in levels of JSON nesting; each level of a schema counts as two

# Keywords that describe a value without restricting it. The prompt contains them, but the grammar does not.
_ANNOTATIONS = frozenset(
    {"$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}
)
_SCHEMA_KEYWORDS = frozenset(
    {
        "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not",
        "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
        "allOf", "anyOf", "oneOf", "prefixItems",
    }
)  # fmt: skip
_NAMED_KEYWORDS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def as_text(value: Any) -> str:
    """Return the value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def without_annotations(schema: Any) -> Any:
    """Return a copy of the schema without annotations, which can be much longer than the rest."""
    if isinstance(schema, list):
        return [without_annotations(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    short: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _SCHEMA_KEYWORDS:
            short[keyword] = without_annotations(value)
        elif keyword in _NAMED_KEYWORDS and isinstance(value, dict):
            short[keyword] = {name: without_annotations(inner) for name, inner in value.items()}
        elif keyword not in _ANNOTATIONS:
            short[keyword] = value
    return short


def _check_size(schema: dict[str, Any]) -> dict[str, Any]:
    if _depth(schema) > _MAX_SCHEMA_DEPTH:
        raise PydanticCustomError(
            "invalid_value",
            f"The schema has more than {_MAX_SCHEMA_DEPTH} levels of nested objects and arrays. Use $defs to "
            "reduce the nesting.",
        )
    num_bytes = len(as_text(without_annotations(schema)).encode())
    if num_bytes > MAX_SCHEMA_BYTES:
        raise PydanticCustomError(
            "invalid_value",
            f"The schema is {num_bytes} bytes without descriptions; the limit is {MAX_SCHEMA_BYTES}. "
            "Simplify the schema.",
        )
    return schema


def _depth(value: Any) -> int:
    """Return the nesting depth of objects and lists, including the outermost one."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth


def _decode(value: Any) -> Any:
    """Decode a schema that was sent as a string. Values of other types are returned unchanged."""
    if not isinstance(value, str):
        return value
    try:
        check_json(value.encode(), JsonLimits())
        schema = json.loads(value)
    except JsonTooLarge as error:
        raise PydanticCustomError("invalid_value", error.about("The schema is a string that")) from error
    except ValueError as error:
        raise PydanticCustomError(
            "invalid_value",
            "The schema is a string that is not valid JSON: {reason}.",
            {"reason": str(error)[:100]},
        ) from error
    if not isinstance(schema, dict):
        raise PydanticCustomError(
            "invalid_value",
            "The schema is a string that does not contain a JSON object. Send an object.",
        )
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(_check_size)]
SchemaOrText = Annotated[dict[str, Any], BeforeValidator(_decode), AfterValidator(_check_size)]
