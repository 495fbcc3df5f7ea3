"""The OpenAPI document as tests walk it: the fields of a request, nested ones too, by route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from llava_server.app import create_app
from llava_server.settings import Settings

__all__ = ["BODIES", "DOCUMENT", "SCHEMAS", "Place", "branches", "leaves", "resolved"]

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi_schema or {}
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
# The request's schema of every route that has one, by path.
BODIES: dict[str, dict[str, Any]] = {
    path: content["schema"]
    for path, methods in DOCUMENT["paths"].items()
    for content in methods.get("post", {}).get("requestBody", {}).get("content", {}).values()
}


class Place(NamedTuple):
    """Where a value stands in a body: names, "[]" for any item of a list, "{}" for any value of a map."""

    steps: tuple[str, ...]
    schema: dict[str, Any]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").removeprefix("#/components/schemas/")
    return SCHEMAS[name] if name else schema


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a value may be, null included; references are followed."""
    schema = resolved(schema)
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    return [branch for each in inner for branch in branches(each)] if inner else [schema]


def leaves(schema: dict[str, Any], steps: tuple[str, ...] = ()) -> Iterator[Place]:
    """Every place of a body where something else than an object or a list may stand."""
    for branch in branches(schema):
        if branch.get("type") == "object":
            for name, inner in branch.get("properties", {}).items():
                yield from leaves(inner, (*steps, name))
            if isinstance(branch.get("additionalProperties"), dict):
                yield from leaves(branch["additionalProperties"], (*steps, "{}"))
        elif branch.get("type") == "array":
            yield from leaves(branch.get("items", {}), (*steps, "[]"))
        else:
            yield Place(steps, branch)
