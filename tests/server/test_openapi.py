"""The OpenAPI document: every field and parameter says what it means, its bounds and an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llava_server.app import create_app
from llava_server.settings import Settings

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi_schema or {}
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
WITHOUT_BODY = ("/v1/batches/{batch_id}/cancel", "/v1/responses/{response_id}/cancel")
FREE = ("string", "number", "integer", "array", "object")  # values that a reader cannot guess from the type


def fields(schemas: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, schema) of every field of every model."""
    for name, schema in schemas.items():
        for field, inner in schema.get("properties", {}).items():
            yield f"{name}.{field}", inner


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [branch for branch in schema.get("anyOf", [schema]) if branch.get("type") != "null"]


def undescribed(schemas: dict[str, Any]) -> list[str]:
    return [name for name, schema in fields(schemas) if not schema.get("description")]


def without_example(schemas: dict[str, Any]) -> list[str]:
    """Fields that may hold anything of a type."""

    def is_free(branch: dict[str, Any]) -> bool:
        return branch.get("type") in FREE and "enum" not in branch and "const" not in branch

    return [
        name
        for name, schema in fields(schemas)
        if any(map(is_free, branches(schema))) and not schema.get("examples")
    ]


def unbounded(schemas: dict[str, Any]) -> list[str]:
    """Numbers without a least or a greatest value."""
    least, most = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
    return [
        name
        for name, schema in fields(schemas)
        for branch in branches(schema)
        if branch.get("type") in ("integer", "number") and not (least & set(branch) and most & set(branch))
    ]


REQUEST_SCHEMAS = {name: schema for name, schema in SCHEMAS.items() if name != "Error"}


def test_every_field_is_described() -> None:
    assert undescribed(SCHEMAS) == []


def test_every_field_that_could_be_anything_has_an_example() -> None:
    assert without_example(REQUEST_SCHEMAS) == []


def test_every_number_is_bounded() -> None:
    assert unbounded(REQUEST_SCHEMAS) == []


def test_a_field_that_says_nothing_is_found() -> None:
    bare = {"Bare": {"properties": {"n": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}}}}
    assert undescribed(bare) == without_example(bare) == unbounded(bare) == ["Bare.n"]


def test_every_model_and_every_route_is_described() -> None:
    assert [name for name, schema in SCHEMAS.items() if not schema.get("description")] == []
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(operations) >= 12
    assert all(operation.get("summary") and operation.get("description") for operation in operations)


def test_every_request_is_an_object_of_the_document() -> None:
    for path, operations in DOCUMENT["paths"].items():
        if "post" in operations and path not in WITHOUT_BODY:
            (content,) = operations["post"]["requestBody"]["content"].values()
            assert content["schema"]["$ref"].removeprefix("#/components/schemas/") in SCHEMAS, path


def test_no_two_models_share_a_name() -> None:
    """A model that took another's place would be missing from what refers to it."""
    for name in ("ChatRequest", "ResponseRequest", "MessagesRequest", "CompletionRequest"):
        assert SCHEMAS[name]["type"] == "object"
    assert "json_schema" in SCHEMAS["ResponseFormat"]["properties"]
    assert "schema" in SCHEMAS["ResponseTextFormat"]["properties"]
