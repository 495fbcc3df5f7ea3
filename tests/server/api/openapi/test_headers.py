"""The OpenAPI document lists the headers that are read and sent, and where a key is asked for; no others."""

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
# Read, but documented elsewhere (keys, a body's kind and size), or of pages, or of the operator's port.
ELSEWHERE = {"authorization", "x-api-key", "content-type", "content-length", "if-none-match", "origin"}


def read_by(source: str) -> set[str]:
    """Names of headers that a source file reads."""
    reads = r'headers?(?:\(scope=scope\))?\.get(?:list)?\(\s*"([\w-]+)"|"([\w-]+)" (?:not )?in [\w.]*headers'
    return {(by_call or by_test).lower() for by_call, by_test in re.findall(reads, source, re.IGNORECASE)}


def headers_of(method: str, path: str) -> set[str]:
    parameters = DOCUMENT["paths"][path][method]["parameters"]
    return {each["name"].lower() for each in parameters if each["in"] == "header"}


def test_every_header_that_is_read_is_in_the_document_and_no_other() -> None:
    folder = Path(llava_server.__file__).parent
    calls_out = folder / "images" / "fetch.py"  # reads another server's answers
    sources = [path.read_text() for path in folder.rglob("*.py") if path != calls_out]
    documented = {name for method, path in OPERATIONS for name in headers_of(method, path)}
    assert set().union(*map(read_by, sources)) == documented | ELSEWHERE


def test_a_header_that_is_read_and_not_in_the_document_would_be_found() -> None:
    cases: list[str] = [
        'Headers(scope=scope).get("X-New", "")',
        'request.headers.get(\n    "x-new")',
        'for key in headers.getlist("x-new")',
        'if "x-new" in request.headers:',
    ]
    for source in cases:
        assert read_by(source) == {"x-new"}, source


def test_headers_of_requests_stand_where_they_mean_something() -> None:
    places = {
        name: {place for place in OPERATIONS if name in headers_of(*place)}
        for name in headers_of("get", CHAT_ID)
    }
    with_key = {("post", CHAT), ("post", "/v1/messages"), ("post", "/v1/responses")}
    assert {place for place in OPERATIONS if "idempotency-key" in headers_of(*place)} == with_key
    assert places["last-event-id"] == {("get", CHAT_ID)}
    assert places["x-request-id"] == set(OPERATIONS)
    assert places["traceparent"] == {place for place in OPERATIONS if place[1].startswith("/v1/")}


def schema_of(name: str) -> dict[str, Any]:
    schemas: list[dict[str, Any]] = [
        each["schema"]
        for method, path in (("post", CHAT), ("get", CHAT_ID))
        for each in DOCUMENT["paths"][path][method]["parameters"]
        if each["name"] == name
    ]
    return schemas[0]


def test_the_bound_of_an_idempotency_key_is_the_documents(stack: Stack) -> None:
    cases: list[str] = ["a", "~" * 255, "a" * 256, "a b", "é"]
    for key in cases:
        headers = [(b"idempotency-key", key.encode())]
        status = stack.http.post(CHAT, json=BODY, headers=headers).status_code
        assert (status == 200) == (violations_of(key, schema_of("Idempotency-Key")) == []), key


def test_the_bound_of_a_request_id_is_the_documents(stack: Stack) -> None:
    cases: list[str] = ["a", "A_-9" * 16, "a" * 65, "a b", ""]
    for given in cases:
        answer = stack.http.get("/livez", headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) == (
            violations_of(given, schema_of("X-Request-Id")) == []
        ), given


def test_the_bound_of_a_last_event_id_is_the_documents(stack: Stack) -> None:
    cases: list[str] = [":1", ":000000001", ":0000000001", ":x", ""]
    for rest in cases:
        job_id = stack.http.post(CHAT, json=BODY, headers={"Idempotency-Key": "to-read-on"}).json()["id"]
        last = f"{job_id}{rest}"
        answer = stack.http.get(f"{CHAT}/{job_id}?stream=true", headers={"last-event-id": last})
        assert (answer.status_code == 200) == (violations_of(last, schema_of("Last-Event-ID")) == []), rest


def test_every_header_of_the_document_is_sent(own_stack: OwnStack, api_key_cli: ApiKeyCli) -> None:
    """What is sent is in the document: the client of these tests sees to that with every answer."""
    http = own_stack(auth=True).http
    limits = ("--requests-per-min", "1", "--tokens-per-min", "5000")
    free, limited = ({"x-api-key": api_key_cli.create(*words)} for words in ((), limits))
    answers = [http.post(CHAT, json=BODY), *(http.post(CHAT, json=BODY, headers=limited) for _ in range(2))]
    assert [each.status_code for each in answers] == [401, 200, 429]
    http.headers.update(free)
    once = {"Idempotency-Key": "once"}
    answers += [http.post(CHAT, json={**BODY, "seed": seed}, headers=once) for seed in (1, 2)]
    answers += [http.post(CHAT, json={**BODY, "stream": True})]
    answers += [http.get(f"/v1/files/{upload(http, b'x').json()['id']}/content")]
    assert [each.status_code for each in answers[3:]] == [200, 409, 200, 200]
    sent = {name for answer in answers for name in answer.headers}
    assert HEADERS.keys() <= sent


def headers() -> Iterator[tuple[str, dict[str, Any]]]:
    for method, path in OPERATIONS:
        for each in DOCUMENT["paths"][path][method]["parameters"]:
            if each["in"] == "header":
                yield each["name"], each
    yield from HEADERS.items()


def test_every_header_has_meaning_and_bound_and_an_example_within_it() -> None:
    for name, header in headers():
        schema = header["schema"]
        assert header["description"], name
        assert schema.keys() & {"pattern", "maxLength", "maximum", "enum", "const"}, name
        assert [violations_of(example, schema) for example in schema["examples"]] == [[]], name


def test_a_key_is_asked_where_the_document_says_so_and_nowhere_else(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=("a-key-of-somebody",))
    document = stack.server.app.openapi()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "x-api-key"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            is_refused = stack.http.request(method, path).status_code == 401
            assert is_refused == bool(operation.get("security")), (method, path)
            assert is_refused <= ("401" in operation["responses"]), (method, path)


def test_where_no_key_is_asked_the_document_asks_for_none() -> None:
    assert not [1 for method, path in OPERATIONS if "security" in DOCUMENT["paths"][path][method]]
