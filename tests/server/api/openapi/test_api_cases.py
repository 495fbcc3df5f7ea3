"""Random requests are generated from the OpenAPI document, and all responses match the document.

pytest tests/server/api/openapi/test_api_cases.py --api-cases 2000 # 2,000 requests over all routes
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.generation import GenerationMode

from tests.server.batch_requests import input_file, request_line, upload
from tests.server.conftest import Stack
from tests.server.document_check import error_of, violations
from tests.server.openapi_document import DOCUMENT
from tests.server.scripted_worker import MODEL

API = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = sorted((path, method) for path, methods in DOCUMENT["paths"].items() for method in methods)
WEIGHTS = {each: 5 if "requestBody" in DOCUMENT["paths"][each[0]][each[1]] else 1 for each in OPERATIONS}
UNEXPECTED = {500, 503}  # documented, but not expected in these tests


def stored_chat(stack: Stack) -> str:
    """Return the ID of a stored completion."""
    headers = {"idempotency-key": "api-case"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
    job_id: str = stack.http.post("/v1/chat/completions", json=body, headers=headers).json()["id"]
    return job_id


def stored_response(stack: Stack) -> str:
    response_id: str = stack.http.post("/v1/responses", json={"model": MODEL, "input": "say yes"}).json()[
        "id"
    ]
    return response_id


def stored_file(stack: Stack) -> str:
    """Return the ID of a file. Existing files are reused because their number is limited."""
    files = stack.http.get("/v1/files").json()["data"]
    file = files[0] if files else upload(stack.http, input_file(request_line("a", "say yes"))).json()
    return str(file["id"])


def created_batch(stack: Stack) -> str:
    body = {
        "input_file_id": stored_file(stack),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch_id: str = stack.http.post("/v1/batches", json=body).json()["id"]
    return batch_id


# Creates an object for each path parameter. Called for every request, because requests may delete the object.
EXISTING: dict[str, Callable[[Stack], str]] = {
    "job_id": stored_chat,
    "response_id": stored_response,
    "file_id": stored_file,
    "batch_id": created_batch,
    "model_id": lambda stack: MODEL,
}


def cases(path: str, method: str) -> st.SearchStrategy[Case[Any]]:
    """Return a strategy that generates requests that are valid or invalid according to the document."""
    operation = API[path][method]
    modes = [operation.as_strategy(generation_mode=GenerationMode("positive"))]
    if operation.body or operation.path_parameters or operation.query:
        modes.append(operation.as_strategy(generation_mode=GenerationMode("negative")))
    return st.one_of(*modes)


def send(stack: Stack, case: Case[Any], *, uses_existing: bool) -> httpx2.Response:
    """Send a case. If ``uses_existing`` is true, path parameters refer to existing objects."""
    path = case.formatted_path
    if uses_existing and case.path_parameters:
        path = case.path.format(**{name: EXISTING[name](stack) for name in case.path_parameters})
    query = {name: str(value) for name, value in (case.query or {}).items()}
    content = payload(case)
    headers = {**sendable(case.headers or {}), **content.pop("headers", {})}
    return stack.http.request(case.method, path, params=query, headers=headers, **content)


def sendable(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that an HTTP client can send. Values may still be invalid for the API."""
    values = {name: str(value) for name, value in headers.items()}
    return {
        name: value
        for name, value in values.items()
        if value == value.strip() and value.isprintable() and value.isascii()
    }


def payload(case: Case[Any]) -> dict[str, Any]:
    body = case.body
    if isinstance(body, schemathesis.core.NotSet):
        return {}
    if case.media_type == "multipart/form-data" and isinstance(body, dict):
        form = {name: str(value) for name, value in body.items() if name != "file"}
        return {"data": form, "files": {"file": ("requests.jsonl", str(body.get("file")).encode())}}
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body = {**body, "model": MODEL}  # otherwise, most requests would fail with model_not_found
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {"content": content, "headers": {"content-type": "application/json"}}


@pytest.mark.timeout(900)  # for large values of --api-cases
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_response_to_a_random_request_is_documented(
    stack: Stack, path: str, method: str, pytestconfig: pytest.Config
) -> None:
    num_cases = max(3, pytestconfig.getoption("--api-cases") * WEIGHTS[path, method] // sum(WEIGHTS.values()))
    documented = {int(status) for status in DOCUMENT["paths"][path][method]["responses"]}
    seen: Counter[int] = Counter()

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(path, method), uses_existing=st.booleans())
    def check_response(case: Case[Any], uses_existing: bool) -> None:
        response = send(stack, case, uses_existing=uses_existing)
        seen[response.status_code] += 1
        assert response.status_code in documented - UNEXPECTED, (response.status_code, response.text)
        assert violations(response) == []
        if response.status_code != 200:
            assert error_of(response)["code"] != "internal_error"

    check_response()
    assert seen.keys() & {200, 400, 404}


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", f"/v1/chat/completions/{'x' * 129}", "job_id"),
        ("DELETE", f"/v1/files/{'x' * 129}", "file_id"),
        ("GET", f"/v1/batches?after={'x' * 129}", "after"),
    ],
)
def test_a_parameter_that_is_too_long_is_a_400(stack: Stack, method: str, path: str, param: str) -> None:
    response = stack.http.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert "128 characters" in error["message"] and len(error["message"]) < 200


def test_every_path_parameter_can_refer_to_an_existing_object(stack: Stack) -> None:
    names = {each["name"] for path, method in OPERATIONS for each in parameters(path, method, "path")}
    assert names == EXISTING.keys()


def parameters(path: str, method: str, location: str) -> list[dict[str, Any]]:
    found = DOCUMENT["paths"][path][method].get("parameters", [])
    return [each for each in found if each["in"] == location]
