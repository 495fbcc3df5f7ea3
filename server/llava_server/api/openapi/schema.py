"""JSON schemas of request models (pydantic) and response models (msgspec) for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from pydantic import BaseModel

from llava_server.response_model import ResponseModel

__all__ = ["Model", "Schema", "component_schemas", "ref"]

Schema = dict[str, Any]
Model = type[BaseModel] | type[ResponseModel]
_REF = "#/components/schemas/"


def ref(name: str) -> Schema:
    """Return a reference to the component with this name."""
    return {"$ref": f"{_REF}{name}"}


@cache  # shared by all apps in a process
def component_schemas(models: tuple[Model, ...]) -> Mapping[str, Schema]:
    """Return the schemas of these models and of all nested models, keyed by name.

    Raises ValueError if two different models have the same name.
    """
    requests = [model for model in models if issubclass(model, BaseModel)]
    responses = [model for model in models if issubclass(model, ResponseModel)]
    schemas = _response_schemas(responses)
    for request in requests:
        schema = request.model_json_schema(ref_template=f"{_REF}{{model}}")
        for name, part in {**schema.pop("$defs", {}), request.__name__: schema}.items():
            if schemas.setdefault(name, part) != part:
                raise ValueError(f"two models are named {name}")
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if "examples" not in field and (found := _examples(field, schemas)):
                field["examples"] = found
    return schemas


def _response_schemas(models: Sequence[type[ResponseModel]]) -> dict[str, Schema]:
    """Return the schemas of response models. Constants get a description, and extra fields are not allowed.

    A field is required unless it can be UNSET.
    """
    _, schemas = msgspec.json.schema_components(models, ref_template=f"{_REF}{{name}}")
    for name, schema in schemas.items():
        if schema["title"] != name:
            raise ValueError(f"two models are named {schema['title']}")
        fields = schema["properties"]
        required = {*schema["required"], *(name for name, field in fields.items() if "default" in field)}
        schema["required"] = [name for name in fields if name in required]
        if not required:
            del schema["required"]
        schema["additionalProperties"] = False
        for field in fields.values():
            field.pop("default", None)
            if len(field.get("enum", ())) == 1:
                [field["const"]] = field.pop("enum")
                field.setdefault("description", str(field["const"]))
    return schemas


def _examples(schema: Schema, schemas: Mapping[str, Schema]) -> list[Any]:
    """Return a list containing the example that a schema implies, or an empty list if there is none."""
    if "examples" in schema:
        return list(schema["examples"][:1])
    if "$ref" in schema:
        return [_example_object(schemas[schema["$ref"].removeprefix(_REF)], schemas)]
    if branches := [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        return _examples(branches[0], schemas)
    if "const" in schema or "enum" in schema:
        return [schema["const"] if "const" in schema else schema["enum"][0]]
    by_type: dict[str, list[Any]] = {"boolean": [True], "null": [None]}
    return by_type.get(schema.get("type", ""), [])


def _example_object(schema: Schema, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """Return an example object with the required fields or, if there are none, with the first field."""
    names = schema.get("required") or list(schema["properties"])[:1]
    return {name: _examples(schema["properties"][name], schemas)[0] for name in names}
