"""The OpenAPI document as tests walk it: the fields of requests and answers, nested ones too, by route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from llava_server.app import create_app
from llava_server.settings import Settings

__all__ = ["BODIES", "DOCUMENT", "SCHEMAS", "Place", "branches", "leaves", "reached", "resolved"]

DOCUMENT: dict[str, Any] = create_app(Settings(auth=False)).openapi_schema or {}
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


def reached(value: Any) -> set[str]:
    """Names of all schemas that a part of the document refers to, at any depth."""
    found: set[str] = set()
    todo = [value]
    while todo:
        each = todo.pop()
        todo += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        ref = each.get("$ref", "") if isinstance(each, dict) else ""
        name = ref.removeprefix("#/components/schemas/")
        if name != ref and name not in found:
            found.add(name)
            todo.append(SCHEMAS[name])
    return found


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
