"""The OpenAPI document lists all headers that the server uses and all routes that require an API key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llava_server
from llava_server.api.openapi.headers import HEADERS

from tests.server.api_key_cli import ApiKeyCli
from tests.server.batch_requests import upload
from tests.server.conftest import OwnStack, Stack
from tests.server.document_check import violations_of
from tests.server.openapi_document import DOCUMENT
from tests.server.scripted_worker import MODEL

CHAT = "/v1/chat/completions"
CHAT_ID = f"{CHAT}/{{job_id}}"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
# Headers that are documented elsewhere (API keys, body type and size), or sent only by web browsers.
ELSEWHERE = {"authorization", "x-api-key", "content-type", "content-length", "content-encoding"}
ELSEWHERE |= {
    "accept-encoding",
    "if-none-match",
    "origin",
    "host",
    "sec-fetch-site",
    "sec-fetch-mode",
    "sec-fetch-dest",
}


def read_by(source: str) -> set[str]:
    """Return the names of the headers that a source file reads."""
    reads = r'headers?(?:\(scope=scope\))?\.get(?:list)?\(\s*"([\w-]+)"|"([\w-]+)" (?:not )?in [\w.]*headers'
    return {(by_call or by_test).lower() for by_call, by_test in re.findall(reads, source, re.IGNORECASE)}


def headers_of(method: str, path: str) -> set[str]:
    parameters = DOCUMENT["paths"][path][method]["parameters"]
    return {each["name"].lower() for each in parameters if each["in"] == "header"}


def test_the_document_lists_exactly_the_headers_that_are_read() -> None:
    folder = Path(llava_server.__file__).parent
    client_module = folder / "images" / "fetch.py"  # reads the response headers of image hosts
    sources = [path.read_text() for path in folder.rglob("*.py") if path != client_module]
    documented = {name for method, path in OPERATIONS for name in headers_of(method, path)}
    assert set().union(*map(read_by, sources)) == documented | ELSEWHERE


def test_an_undocumented_request_header_is_detected() -> None:
    cases: list[str] = [
        'Headers(scope=scope).get("X-New", "")',
        'request.headers.get(\n    "x-new")',
        'for key in headers.getlist("x-new")',
        'if "x-new" in request.headers:',
    ]
    for source in cases:
        assert read_by(source) == {"x-new"}, source


def test_request_headers_are_documented_only_where_they_apply() -> None:
    documented_for = {
        name: {operation for operation in OPERATIONS if name in headers_of(*operation)}
        for name in headers_of("get", CHAT_ID)
    }
    with_key = {("post", CHAT), ("post", "/v1/messages"), ("post", "/v1/responses")}
    assert {operation for operation in OPERATIONS if "idempotency-key" in headers_of(*operation)} == with_key
    assert documented_for["last-event-id"] == {("get", CHAT_ID)}
    assert documented_for["x-request-id"] == set(OPERATIONS)
    assert documented_for["traceparent"] == {
        operation for operation in OPERATIONS if operation[1].startswith(("/v1/", "/api/"))
    }


def schema_of(name: str) -> dict[str, Any]:
    schemas: list[dict[str, Any]] = [
        each["schema"]
        for method, path in (("post", CHAT), ("get", CHAT_ID))
        for each in DOCUMENT["paths"][path][method]["parameters"]
        if each["name"] == name
    ]
    return schemas[0]


def test_the_documented_limits_of_an_idempotency_key_are_enforced(stack: Stack) -> None:
    cases: list[str] = ["a", "~" * 255, "a" * 256, "a b", "é"]
    for key in cases:
        headers = [(b"idempotency-key", key.encode())]
        status = stack.http.post(CHAT, json=BODY, headers=headers).status_code
        assert (status == 200) == (violations_of(key, schema_of("Idempotency-Key")) == []), key


def test_the_documented_limits_of_a_request_id_are_enforced(stack: Stack) -> None:
    cases: list[str] = ["a", "A_-9" * 16, "a" * 65, "a b", ""]
    for given in cases:
        response = stack.http.get("/livez", headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) == (
            violations_of(given, schema_of("X-Request-Id")) == []
        ), given


def test_the_documented_limits_of_a_last_event_id_are_enforced(stack: Stack) -> None:
    cases: list[str] = [":1", ":000000001", ":0000000001", ":x", ""]
    for rest in cases:
        job_id = stack.http.post(CHAT, json=BODY, headers={"Idempotency-Key": "to-resume"}).json()["id"]
        last = f"{job_id}{rest}"
        response = stack.http.get(f"{CHAT}/{job_id}?stream=true", headers={"last-event-id": last})
        assert (response.status_code == 200) == (violations_of(last, schema_of("Last-Event-ID")) == []), rest


def test_every_documented_response_header_is_sent(own_stack: OwnStack, api_key_cli: ApiKeyCli) -> None:
    """For every response, the test client checks that no other headers are sent."""
    http = own_stack(auth=True).http
    limits = ("--requests-per-min", "1", "--tokens-per-min", "5000")
    free, limited = ({"x-api-key": api_key_cli.create(*words)} for words in ((), limits))
    responses = [http.post(CHAT, json=BODY), *(http.post(CHAT, json=BODY, headers=limited) for _ in range(2))]
    assert [each.status_code for each in responses] == [401, 200, 429]
    http.headers.update(free)
    once = {"Idempotency-Key": "once"}
    responses += [http.post(CHAT, json={**BODY, "seed": seed}, headers=once) for seed in (1, 2)]
    responses += [http.post(CHAT, json={**BODY, "stream": True})]
    responses += [http.post(CHAT, json=BODY, headers={"content-encoding": "gzip"})]
    responses += [http.get(f"/v1/files/{upload(http, b'x').json()['id']}/content")]
    assert [each.status_code for each in responses[3:]] == [200, 409, 200, 415, 200]
    sent = {name for response in responses for name in response.headers}
    assert HEADERS.keys() <= sent


def headers() -> Iterator[tuple[str, dict[str, Any]]]:
    for method, path in OPERATIONS:
        for each in DOCUMENT["paths"][path][method]["parameters"]:
            if each["in"] == "header":
                yield each["name"], each
    yield from HEADERS.items()


def test_every_header_has_a_description_limits_and_a_valid_example() -> None:
    for name, header in headers():
        schema = header["schema"]
        assert header["description"], name
        assert schema.keys() & {"pattern", "maxLength", "maximum", "enum", "const"}, name
        assert [violations_of(example, schema) for example in schema["examples"]] == [[]], name


def test_an_api_key_is_required_exactly_where_documented(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=("a-key-of-somebody",))
    document = stack.server.app.openapi()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "x-api-key"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            is_rejected = stack.http.request(method, path).status_code == 401
            assert is_rejected == bool(operation.get("security")), (method, path)
            assert is_rejected <= ("401" in operation["responses"]), (method, path)


def test_the_document_requires_no_key_if_authentication_is_disabled() -> None:
    assert not [1 for method, path in OPERATIONS if "security" in DOCUMENT["paths"][path][method]]
