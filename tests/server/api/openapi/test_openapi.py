"""Every field and parameter in the OpenAPI document has a description, limits and an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llava_server import error_response
from llava_server.api.openapi.schema import component_schemas
from llava_server.response_model import ResponseModel
from pydantic import BaseModel

from tests.server.document_check import violations_of
from tests.server.openapi_document import DOCUMENT, SCHEMAS, alternatives

WITHOUT_BODY = ("/v1/batches/{batch_id}/cancel", "/v1/responses/{response_id}/cancel", "/ping")
Field = tuple[str, dict[str, Any]]


def fields(schemas: dict[str, Any]) -> Iterator[Field]:
    """Yield (name, schema) for every field of every model, including fields of nested objects."""
    for name, schema in schemas.items():
        for field, inner in schema.get("properties", {}).items():
            yield f"{name}.{field}", inner
            yield from fields({f"{name}.{field}": inner})


def parameters() -> Iterator[Field]:
    """Yield (name, schema) for every parameter. The schema includes the parameter's description."""
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
    """Return the names of numeric fields without a minimum or maximum, including items of lists and maps."""
    minimums, maximums = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
    return [
        name
        for name, schema in fields
        for inner in items(schema)
        if inner.get("type") in ("integer", "number")
        and "const" not in inner
        and not (minimums & set(inner) and maximums & set(inner))
    ]


def example_errors(schema: dict[str, Any]) -> list[str]:
    return [error for example in schema["examples"] for error in violations_of(example, schema)]


def items(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for branch in alternatives(schema):
        yield branch
        for name in ("items", "additionalProperties"):
            if isinstance(branch.get(name), dict):
                yield from items(branch[name])


def test_the_document_lists_the_fields_of_all_models() -> None:
    assert len(EVERYTHING) > 300
    assert {"ErrorDetail.retry_after_ms", "get /v1/batches limit", "Function.name"} <= dict(EVERYTHING).keys()


def test_everything_is_described() -> None:
    assert undescribed(EVERYTHING) == []


def test_everything_has_an_example() -> None:
    assert without_example(EVERYTHING) == []


def test_every_example_is_valid() -> None:
    assert [(name, errors) for name, schema in EVERYTHING if (errors := example_errors(schema))] == []


def test_an_invalid_example_is_detected() -> None:
    assert example_errors({"type": "integer", "examples": [1, "x"]}) == ["$: 'x' is not of type 'integer'"]


def test_every_number_is_bounded() -> None:
    assert unbounded(EVERYTHING) == []


def test_a_field_without_description_example_or_limits_is_detected() -> None:
    for schema in (
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
        {"type": "array", "items": {"type": "number", "maximum": 1}},
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ):
        bare = [("Bare.n", schema)]
        assert undescribed(bare) == without_example(bare) == unbounded(bare) == ["Bare.n"]


def test_every_model_and_every_route_is_described() -> None:
    assert [name for name, schema in SCHEMAS.items() if not schema.get("description")] == []
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(operations) >= 12
    assert all(operation.get("summary") and operation.get("description") for operation in operations)


def test_every_request_body_is_a_component_of_the_document() -> None:
    for path, operations in DOCUMENT["paths"].items():
        if "post" in operations and path not in WITHOUT_BODY:
            (content,) = operations["post"]["requestBody"]["content"].values()
            assert content["schema"]["$ref"].removeprefix("#/components/schemas/") in SCHEMAS, path


def test_two_models_with_one_name_are_an_error() -> None:
    """Without this error, the document would silently omit one of the models."""

    class Error(ResponseModel):
        text: str

    class ErrorDetail(BaseModel):
        text: str

    for other in (Error, ErrorDetail):
        with pytest.raises(ValueError, match=f"two models are named {other.__name__}"):
            component_schemas((error_response.Error, other))
