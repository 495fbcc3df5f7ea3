"""An example for every field of the OpenAPI document that has none of its own: what its type alone says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["add_examples"]

Schema = dict[str, Any]


def add_examples(schemas: Mapping[str, Schema]) -> None:
    """A field that could be anything of a type keeps none: that one has to say it itself."""
    for model in schemas.values():
        for field in model.get("properties", {}).values():
            if "examples" not in field and (found := _examples(field, schemas)):
                field["examples"] = found


def _examples(schema: Schema, schemas: Mapping[str, Schema]) -> list[Any]:
    """One, or none where the schema does not tell."""
    if "examples" in schema:
        return list(schema["examples"][:1])
    if "$ref" in schema:
        return _of_model(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if branches := [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        return _examples(branches[0], schemas)
    if "const" in schema or "enum" in schema:
        return [schema["const"] if "const" in schema else schema["enum"][0]]
    of_type: dict[str, list[Any]] = {"boolean": [True], "null": [None]}
    return of_type.get(schema.get("type", ""), [])


def _of_model(model: Schema, schemas: Mapping[str, Schema]) -> list[Any]:
    """With what it must have, or with its first field."""
    names = model.get("required") or list(model["properties"])[:1]
    return [{name: _examples(model["properties"][name], schemas)[0] for name in names}]
