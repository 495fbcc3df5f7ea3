"""The OpenAPI document: every field and parameter says what it means, its bounds and an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.server.document import DOCUMENT, SCHEMAS, branches

WITHOUT_BODY = ("/v1/batches/{batch_id}/cancel", "/v1/responses/{response_id}/cancel")
Field = tuple[str, dict[str, Any]]


def fields(schemas: dict[str, Any]) -> Iterator[Field]:
    """(name, schema) of every field of every model, and of objects that stand inside of them."""
    for name, schema in schemas.items():
        for field, inner in schema.get("properties", {}).items():
            yield f"{name}.{field}", inner
            yield from fields({f"{name}.{field}": inner})


def parameters() -> Iterator[Field]:
    """What stands in paths and queries; what it means is beside its schema."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            for each in operation.get("parameters", ()):
                described = {**each["schema"], "description": each.get("description")}
                yield f"{method} {path} {each['name']}", described


EVERYTHING: list[Field] = [*fields(SCHEMAS), *parameters()]


def undescribed(fields: list[Field]) -> list[str]:
    return [name for name, schema in fields if not schema.get("description")]


def without_example(fields: list[Field]) -> list[str]:
    return [name for name, schema in fields if not schema.get("examples")]


def unbounded(fields: list[Field]) -> list[str]:
    """Numbers without a least or a greatest value, also within lists and maps."""
    least, most = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
    return [
        name
        for name, schema in fields
        for inner in items(schema)
        if inner.get("type") in ("integer", "number")
        and "const" not in inner
        and not (least & set(inner) and most & set(inner))
    ]


def items(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for branch in branches(schema):
        yield branch
        for name in ("items", "additionalProperties"):
            if isinstance(branch.get(name), dict):
                yield from items(branch[name])


def test_there_is_much_to_be_said() -> None:
    assert len(EVERYTHING) > 300
    assert {"ErrorDetail.retry_after_ms", "get /v1/batches limit", "Function.name"} <= dict(EVERYTHING).keys()


def test_everything_is_described() -> None:
    assert undescribed(EVERYTHING) == []


def test_everything_has_an_example() -> None:
    assert without_example(EVERYTHING) == []


@pytest.mark.parametrize(("name", "schema"), EVERYTHING, ids=[name for name, _ in EVERYTHING])
def test_an_example_is_allowed_where_it_stands(name: str, schema: dict[str, Any]) -> None:
    for example in schema["examples"]:
        jsonschema.validate(example, {**schema, "components": DOCUMENT["components"]})


def test_every_number_is_bounded() -> None:
    assert unbounded(EVERYTHING) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
        {"type": "array", "items": {"type": "number", "maximum": 1}},
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ],
)
def test_a_field_that_says_nothing_is_found(schema: dict[str, Any]) -> None:
    bare = [("Bare.n", schema)]
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
