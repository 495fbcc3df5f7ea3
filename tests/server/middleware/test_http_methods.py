"""HEAD, OPTIONS, extra slashes and wrong base URLs."""

from __future__ import annotations

import httpx2
import pytest

from tests.security.raw_http import connect
from tests.server.conftest import OwnStack, Stack
from tests.server.document_check import error_of
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
GET_PATHS = ["/", "/playground/app.js", "/docs", "/openapi.json", "/livez", "/readyz", "/health", "/ping"]
GET_PATHS += ["/version", "/load", "/v1/models", f"/v1/models/{MODEL}", "/v1/files", "/v1/batches"]
GET_PATHS += ["/nowhere", "/v1/models/unknown", "/v1/files/unknown", "/playground/nothing", CHAT, "/ping/x"]
PER_RESPONSE = {"x-request-id", "date"}


def raw(stack: Stack, request: str) -> bytes:
    """Send a raw request and return all bytes until the server closes the connection."""
    with connect(stack) as connection:
        connection.sendall(request.encode("latin-1"))
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_returns_the_status_and_headers_of_get_without_the_body(stack: Stack, path: str) -> None:
    got = stack.http.get(path, headers={"x-request-id": "a", "accept-encoding": "identity"})
    head = raw(
        stack, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\r\nConnection: close\r\n\r\n"
    )
    lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    assert int(lines[0].split()[1]) == got.status_code
    ignored = {"date", "connection", "content-length"} if path == "/nowhere" else {"date", "connection"}
    assert {name: headers[name] for name in headers.keys() - ignored} == {
        name: got.headers[name] for name in got.headers.keys() - ignored
    }
    assert "content-length" in headers


def test_head_is_logged_as_head_and_keeps_the_route(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="llava_server.middleware.request_id"):
        stack.http.head(f"/v1/models/{MODEL}")
        wait_until(lambda: "HEAD /v1/models/{model_id:path} 200" in caplog.text)


def test_head_of_a_stream_ends_at_once_and_does_not_disturb_the_response(stack: Stack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    headers = {"idempotency-key": "head-of-a-stream"}
    with stack.http.stream("POST", CHAT, json=body, headers=headers) as response:
        lines = response.iter_lines()
        first = next(line for line in lines if line.startswith("id: "))
        job_id = first.removeprefix("id: ").partition(":")[0]
        for query, media_type in (("?stream=true", "text/event-stream"), ("", "application/json")):
            head = stack.http.head(f"{CHAT}/{job_id}{query}")
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"].startswith(media_type)
        assert stack.http.head(f"{CHAT}/unknown?stream=true").status_code == 404
        stack.worker.release.set()
        assert "[DONE]" in "".join(lines)


def test_head_never_starts_generation(stack: Stack) -> None:
    for path in (CHAT, "/v1/responses", "/v1/messages", "/v1/completions", "/v1/embeddings", "/tokenize"):
        response = stack.http.request("HEAD", path, json=BODY)
        status = 200 if path == CHAT else 405  # GET lists the stored completions
        assert (response.status_code, response.content) == (status, b"")
    assert stack.worker.assignments == []


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (CHAT, "GET, POST, HEAD, OPTIONS"),
        ("/v1/embeddings", "POST, OPTIONS"),
        (f"{CHAT}/some-id", "GET, POST, DELETE, HEAD, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/files", "GET, POST, HEAD, OPTIONS"),
        ("/ping", "GET, POST, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_and_405_list_all_methods_of_the_path(stack: Stack, path: str, allowed: str) -> None:
    response = stack.http.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allowed, b"")
    rejected = stack.http.request("PATCH", path)
    assert (rejected.status_code, rejected.headers["allow"]) == (405, allowed)
    assert f"Use {allowed}." in rejected.json()["error"]["message"]


def test_options_of_an_unknown_path_is_404_and_of_a_locked_one_401(stack: Stack, own_stack: OwnStack) -> None:
    assert stack.http.options("/nowhere").status_code == 404
    assert own_stack(auth=True).http.options(CHAT).status_code == 401


def test_extra_slashes_are_served_without_a_redirect(stack: Stack) -> None:
    def posted(path: str) -> int:
        return httpx2.post(f"{stack.server.url}{path}", json=BODY, follow_redirects=False).status_code

    def got(path: str) -> int:
        return httpx2.get(f"{stack.server.url}{path}", follow_redirects=False).status_code

    for path in (f"{CHAT}/", f"/{CHAT}", "/v1//chat/completions", f"//{CHAT}//"):
        assert posted(path) == 200, path
    for path in GET_PATHS[1:]:
        assert got(f"{path}/") == got(f"/{path}") == got(path), path


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/chat/completions", "Did you mean '/v1/chat/completions'?"),
        ("GET", "/models", "Did you mean '/v1/models'?"),
        ("POST", "/messages", "Did you mean '/v1/messages'?"),
        ("POST", "/api/openai/v1/chat/completions", "Did you mean '/v1/chat/completions'?"),
        ("POST", "/v1/tokenize", "Did you mean '/tokenize'?"),
        ("POST", "/v1/v1/chat/completions", 'begins with "/v1" twice'),
        ("GET", "/v1/v1", 'begins with "/v1" twice'),
        ("GET", "/nowhere", "See /docs"),
        ("GET", "/" + "x/" * 5000, "See /docs"),
    ],
)
def test_the_404_for_a_wrong_base_url_suggests_the_correct_one(
    stack: Stack, method: str, path: str, words: str
) -> None:
    response = stack.http.request(method, path)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (404, "unknown_url")
    assert words in error["message"]
