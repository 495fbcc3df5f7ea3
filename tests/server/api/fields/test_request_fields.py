"""Every request field, query parameter and form field in the OpenAPI document has a row.

The tests fail if a new field has no row, or if a row's location does not belong to its field.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.server.api.fields import chat, messages, ollama, others, responses
from tests.server.api.fields.rows import (
    ABSENT,
    CoveredElsewhere,
    Differs,
    Hint,
    Ignored,
    Only,
    Row,
    changed,
    outcome,
    owners,
)
from tests.server.api.openapi.test_api_cases import EXISTING
from tests.server.conftest import Stack
from tests.server.document_check import error_of
from tests.server.openapi_document import DOCUMENT, REQUEST_SCHEMAS, SCHEMAS, referenced_schemas

ROWS: dict[str, Row] = {**chat.ROWS, **responses.ROWS, **messages.ROWS, **others.ROWS, **ollama.ROWS}
# Values of unsupported fields that resemble neutral values but must be rejected.
PARTLY_NEUTRAL: dict[str, Any] = {"modalities": ["text", "audio"], "reasoning_effort": "high"}
UNSUPPORTED = [(model, name) for model, fields in others.UNSUPPORTED.items() for name in fields]
SHARED = [
    (model, name)
    for model, table in others.SHARED.items()
    for name in table
    if name in SCHEMAS[model]["properties"] and f"{model}.{name}" not in ROWS
]
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]


def parameters_in(location: str) -> list[tuple[str, str, str]]:
    """Return (method, path, name) for every path or query parameter."""
    return [
        (method, path, each["name"])
        for method, path in OPERATIONS
        for each in DOCUMENT["paths"][path][method].get("parameters", ())
        if each["in"] == location
    ]


def test_every_field_of_every_request_has_one_row() -> None:
    fields = {
        f"{model}.{name}"
        for model in referenced_schemas(list(REQUEST_SCHEMAS.values()))
        for name in SCHEMAS[model]["properties"]
    }
    rows = [
        *ROWS,
        *(f"{model}.{name}" for model, name in [*UNSUPPORTED, *SHARED]),
        *(f"{model}.model" for model in others.REQUESTS),
    ]
    assert sorted(rows) == sorted(fields)


def test_every_query_parameter_has_a_row() -> None:
    assert {f"{method.upper()} {path} {name}" for method, path, name in parameters_in("query")} == (
        others.QUERIES.keys()
    )
    locations = {
        each["in"] for method, path in OPERATIONS for each in DOCUMENT["paths"][path][method]["parameters"]
    }
    assert locations == {"query", "path", "header"}  # test_headers.py covers headers


@pytest.mark.parametrize("model", sorted({name.partition(".")[0] for name in ROWS}))
def test_a_field_behaves_as_described_by_its_row(stack: Stack, model: str) -> None:
    for name, row in ROWS.items():
        owner, _, field = name.partition(".")
        if owner != model or isinstance(row, CoveredElsewhere):
            continue
        with named(name):
            assert (
                row.location.rpartition(".")[2] == field or isinstance(row, Only) and row.rejected == ABSENT
            )
            if row.location.rpartition(".")[2] == field:
                assert model in owners(row.path, row.location)
            TRY[type(row)](stack, row)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Add the field name to assertion errors."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error


def try_differs(stack: Stack, row: Differs) -> None:
    seen = []
    for value in row.values:
        response, result = outcome(stack, row.path, changed(row.body, row.location, value))
        assert response.status_code == 200, response.text
        seen.append(result)
    assert len(set(seen)) == len(seen) >= 2
    assert outcome(stack, row.path, changed(row.body, row.location, row.values[-1]))[1] == seen[-1]


def try_ignored(stack: Stack, row: Ignored | Hint) -> None:
    response, plain = outcome(stack, row.path, row.body)
    assert response.status_code == 200, response.text
    assert outcome(stack, row.path, changed(row.body, row.location, row.accepted))[1] == plain


def try_hint(stack: Stack, row: Hint) -> None:
    try_ignored(stack, row)
    check_rejected(stack, row.path, changed(row.body, row.location, row.rejected), row.location)


def try_only(stack: Stack, row: Only) -> None:
    response, _ = outcome(stack, row.path, row.body)
    assert response.status_code == 200, response.text
    check_rejected(stack, row.path, changed(row.body, row.location, row.rejected), row.param or row.location)


TRY: dict[type, Any] = {Differs: try_differs, Ignored: try_ignored, Hint: try_hint, Only: try_only}


def check_rejected(stack: Stack, path: str, body: dict[str, Any], param: str) -> None:
    response = stack.http.post(path, json=body)
    assert response.status_code == 400, response.text
    error = error_of(response)
    named, wanted = names(error["param"]), names(param)
    assert (named[0], wanted[-1] in named) == (wanted[0], True), error


def names(location: str) -> list[str]:
    return re.findall(r"[^.\[\]]+", location)


def test_a_field_of_sampling_or_grammar_changes_the_job(stack: Stack) -> None:
    for model, name in SHARED:
        path, body = others.REQUESTS[model]
        fields = others.SHARED[model][name]
        assert name in fields
        response, result = outcome(stack, path, {**body, **fields})
        assert response.status_code == 200, (name, response.text)
        without = {key: value for key, value in fields.items() if key != name}
        assert result != outcome(stack, path, {**body, **without})[1], (model, name)


@pytest.mark.parametrize("model", others.UNSUPPORTED)
def test_an_unsupported_field_is_an_error_that_names_it_unless_its_value_is_neutral(
    stack: Stack, model: str
) -> None:
    path, body = others.REQUESTS[model]
    for name, field in others.UNSUPPORTED[model].items():
        for value in (PARTLY_NEUTRAL.get(name), {"some": "value"}):
            error = error_of(stack.http.post(path, json={**body, name: value or {"some": "value"}}))
            assert (error["code"], error["param"]) == ("unsupported_parameter", name)
            assert name in error["message"]
        for neutral in (None, *field.neutral):
            response = stack.http.post(path, json={**body, name: neutral})
            assert response.status_code == 200, (name, neutral, response.text)


def test_a_model_that_is_not_served_is_not_found(stack: Stack) -> None:
    for path, body in others.REQUESTS.values():
        assert stack.http.post(path, json=body).status_code == 200, path
        response = stack.http.post(path, json={**body, "model": "unknown"})
        assert (response.status_code, error_of(response)["param"]) == (404, "model"), path


def test_a_path_parameter_must_refer_to_an_existing_object(stack: Stack) -> None:
    for method, path, name in parameters_in("path"):
        found = stack.http.request(method, path.replace(f"{{{name}}}", EXISTING[name](stack)))
        missing = stack.http.request(method, path.replace(f"{{{name}}}", "unknown"))
        assert (found.status_code in (200, 409), missing.status_code) == (True, 404), (method, path)


def test_a_test_that_a_row_names_exists_and_contains_the_field() -> None:
    for name, row in {**ROWS, **others.QUERIES}.items():
        if isinstance(row, CoveredElsewhere):
            field = name.rpartition(".")[2].rpartition(" ")[2]
            file, _, function = row.test.partition("::")
            assert re.search(rf"\b{field}\b", source_of(file)[function]), name


@cache
def source_of(file: str) -> dict[str, str]:
    """Return the source code of each test in a file, including decorators, keyed by test name."""
    (path,) = Path(__file__).parents[2].rglob(file)
    text = path.read_text()
    return {
        node.name: "\n".join(
            ast.get_source_segment(text, each) or "" for each in [*node.decorator_list, node]
        )
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
