"""The OpenAPI document, and functions that traverse its schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from llava_server.app import create_app
from llava_server.settings import Settings

__all__ = [
    "REQUEST_SCHEMAS",
    "DOCUMENT",
    "SCHEMAS",
    "LeafSchema",
    "alternatives",
    "leaf_schemas",
    "referenced_schemas",
    "resolve",
]

DOCUMENT: dict[str, Any] = create_app(Settings(auth=False)).openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
# Request schemas, keyed by path.
REQUEST_SCHEMAS: dict[str, dict[str, Any]] = {
    path: content["schema"]
    for path, methods in DOCUMENT["paths"].items()
    for content in methods.get("post", {}).get("requestBody", {}).get("content", {}).values()
}


class LeafSchema(NamedTuple):
    """The schema of a scalar value in a body.

    ``steps`` contains field names, "[]" for list items and "{}" for map values.
    """

    steps: tuple[str, ...]
    schema: dict[str, Any]


def referenced_schemas(value: Any) -> set[str]:
    """Return the names of all schemas that a part of the document references, directly or indirectly."""
    names: set[str] = set()
    todo = [value]
    while todo:
        part = todo.pop()
        todo += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        ref = part.get("$ref", "") if isinstance(part, dict) else ""
        name = ref.removeprefix("#/components/schemas/")
        if name != ref and name not in names:
            names.add(name)
            todo.append(SCHEMAS[name])
    return names


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").removeprefix("#/components/schemas/")
    return SCHEMAS[name] if name else schema


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas that a value may match, including null. References are resolved."""
    schema = resolve(schema)
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    return [branch for part in inner for branch in alternatives(part)] if inner else [schema]


def leaf_schemas(schema: dict[str, Any], steps: tuple[str, ...] = ()) -> Iterator[LeafSchema]:
    """Yield the schema of every scalar value in a body."""
    for branch in alternatives(schema):
        if branch.get("type") == "object":
            for name, inner in branch.get("properties", {}).items():
                yield from leaf_schemas(inner, (*steps, name))
            if isinstance(branch.get("additionalProperties"), dict):
                yield from leaf_schemas(branch["additionalProperties"], (*steps, "{}"))
        elif branch.get("type") == "array":
            yield from leaf_schemas(branch.get("items", {}), (*steps, "[]"))
        else:
            yield LeafSchema(steps, branch)
