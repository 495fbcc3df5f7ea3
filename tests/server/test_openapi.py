"""The OpenAPI document: every field says what it means, its bounds and an example; and it keeps its word.

pytest tests/server/test_openapi.py --api-cases 2000     # as many requests made from it as that
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from llava_server.app import create_app
from llava_server.settings import Settings

from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

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


def sent_as(path: str, body: Any) -> dict[str, Any]:
    """How a client sends this body there."""
    if path in WITHOUT_BODY:
        return {}
    if path != "/v1/files" or not isinstance(body, dict):
        return {"json": body}
    form = {name: str(value) for name, value in body.items() if name not in ("file", "model")}
    return {"data": form, "files": {"file": ("requests.jsonl", str(body.get("file")).encode())}}


POSTS = sorted(path for path, operations in DOCUMENT["paths"].items() if "post" in operations)


@pytest.mark.timeout(900)  # for the long form
@pytest.mark.parametrize("path", POSTS)
def test_no_request_of_the_document_meets_a_500_or_a_status_that_is_not_in_it(
    stack: Stack, path: str, pytestconfig: pytest.Config
) -> None:
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path]["POST"]
    num_cases = max(1, pytestconfig.getoption("--api-cases") // len(POSTS))
    documented = {int(status) for status in DOCUMENT["paths"][path]["post"]["responses"]}
    seen: dict[int, int] = {}

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def keeps_its_word(case: schemathesis.Case) -> None:
        body = case.body
        if isinstance(body, dict):
            body = {**body, "model": MODEL}
        response = stack.http.post(case.formatted_path, **sent_as(path, body))
        seen[response.status_code] = seen.get(response.status_code, 0) + 1
        assert response.status_code in documented - {500, 503}, response.text
        if response.status_code != 200:
            assert response.json()["error"]["code"] != "internal_error"

    keeps_its_word()
    assert sum(seen.values()) >= num_cases
    assert seen.keys() & {200, 400, 404}
