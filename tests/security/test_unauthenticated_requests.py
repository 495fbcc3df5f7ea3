"""Without a valid API key, only public paths are served. The server sends no CORS headers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.routing import Route

from tests.security.raw_http import connect, status_line
from tests.server.conftest import Stack, running_stack

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PUBLIC = {"/", "/playground/{name}", "/livez", "/readyz", "/health", "/ping", "/version"}
PUBLIC |= {"/docs", "/openapi.json"}
KEY = "key-of-somebody"


@pytest.fixture(scope="module")
def locked(valkey_socket: Path) -> Iterator[Stack]:
    with running_stack(f"unix://{valkey_socket}?db=999", auth=True, api_keys=(KEY,)) as stack:
        yield stack


def status_of(stack: Stack, request: str) -> int:
    """Send a raw request and return the status of the response."""
    return int(status_line(stack, request.encode("latin-1")).split(b" ", 2)[1])


def paths(stack: Stack) -> set[str]:
    routes = {route.path for route in stack.server.app.routes if isinstance(route, Route)}
    return routes | set(stack.server.app.openapi()["paths"])


def test_without_a_key_only_public_paths_are_served(locked: Stack) -> None:
    for path in paths(locked) - PUBLIC:
        for method in METHODS:
            assert locked.http.request(method, path.replace("{", "").replace("}", "")).status_code == 401


TRICKS = [
    "/v1/models",
    "//v1/models",
    "/%2e/v1/models",
    "/./v1/models",
    "/livez/../v1/models",
    "/livez%2f..%2fv1%2fmodels",
    "/playground/../v1/models",
    "/playground/..%2fv1%2fmodels",
    "/docs/../v1/models",
    "/v1%2fmodels",
    "/V1/MODELS",
    "/v1/models;/livez",
    "/v1/models?x=/livez",
    "/v1/models#/livez",
    "http://x/v1/models",
    "http://x/livez/../v1/models",
]


@pytest.mark.parametrize("host", ["x", "x/livez?", "localhost/livez#", "x\\livez", "livez", ""])
def test_no_spelling_of_path_or_host_bypasses_authentication(locked: Stack, host: str) -> None:
    for target in TRICKS:
        status = status_of(locked, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert status in (400, 401), (target, status)


@pytest.mark.parametrize("path", ["/livez/", "//livez", "/version/", "//ping/"])
def test_extra_slashes_do_not_change_which_paths_are_public(locked: Stack, path: str) -> None:
    assert status_of(locked, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == 200
    for private in ("/load/", "//load", "/v1//models/", "/docs//v1/models", "/playground//"):
        head = f"GET {private} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert status_of(locked, head) == 401, private


def test_with_the_key_the_same_request_is_served(locked: Stack) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
    assert status_of(locked, head) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"x-api-key": KEY, "authorization": f"Bearer {KEY}"},
        {"x-api-key": KEY, "authorization": "Bearer"},
        {"x-api-key": KEY, "authorization": "Basic bm9ib2R5"},
    ],
)
def test_a_key_is_accepted_in_either_header_on_all_routes(locked: Stack, headers: dict[str, str]) -> None:
    for path in paths(locked):
        for method in ("GET", "POST"):
            assert locked.http.request(method, path, headers=headers).status_code != 401, path


@pytest.mark.parametrize("second", ["other", "x-api-key", KEY + "x"])
def test_two_different_keys_in_one_request_are_rejected(locked: Stack, second: str) -> None:
    for bearer, own in ((KEY, second), (second, KEY)):
        headers = {"authorization": f"Bearer {bearer}", "x-api-key": own}
        response = locked.http.get("/v1/models", headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (401, "invalid_api_key")
        assert "Authorization and x-api-key contain different API keys" in error["message"]
        assert KEY not in response.text


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY + "x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY}\u00e9"},
        {"authorization": "Bearer"},
        {"x-api-key": ""},
        {"x-api-key": f"Bearer {KEY}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer{KEY}"},
        {"authorization": "Bearer " + "x" * 20_000},
        {"cookie": f"key={KEY}"},
        {"x-forwarded-for": "127.0.0.1", "x-original-url": "/livez", "x-rewrite-url": "/livez"},
    ],
)
def test_almost_valid_keys_are_rejected(locked: Stack, headers: dict[str, str]) -> None:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert locked.http.get("/v1/models", headers=encoded).status_code == 401


def test_bodies_sent_to_public_paths_are_not_read(locked: Stack) -> None:
    """Otherwise, clients without a key could use up the limit on the total size of request bodies."""
    for path in ("/ping", "/livez", "/docs"):
        request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**40}\r\n\r\n"
        assert status_of(locked, request + "x" * 4096) == (200 if path == "/ping" else 405)


def test_no_route_accepts_a_url_to_call(locked: Stack) -> None:
    words = ("register", "webhook", "callback", "proxy", "fetch", "worker_url")
    document = locked.server.app.openapi()
    found = [path for path in paths(locked) if any(word in path for word in words)]
    parameters = [
        parameter["name"]
        for operations in document["paths"].values()
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
    ]
    assert found == []
    assert not [name for name in parameters if "url" in name or name in words]


def test_pages_of_other_sites_get_no_cors_headers(locked: Stack) -> None:
    headers = {"origin": "https://evil.test", "access-control-request-method": "POST"}
    for path in ("/v1/chat/completions", "/v1/models", "/livez", "/"):
        for method in ("OPTIONS", "GET", "POST"):
            response = locked.http.request(method, path, headers=headers)
            assert not [name for name in response.headers if name.startswith("access-control-")]


FILES = ["/playground/../settings.py", "/playground/..%2f..%2fsettings.py", "/playground/%2e%2e%2fapp.py"]
FILES += ["/playground//etc/passwd", "/playground/....//app.py", "/playground/index.html%00.py"]
FILES += ["/playground/."]


@pytest.mark.parametrize("path", FILES)
def test_no_path_escapes_the_playground_folder(stack: Stack, path: str) -> None:
    assert status_of(stack, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == 404


@pytest.fixture
def unfinished_requests(stack: Stack) -> Iterator[None]:
    """Open 200 connections, each of which sends an incomplete request and then stops sending data."""
    with ExitStack() as connections:
        for _ in range(200):
            connection = connections.enter_context(connect(stack))
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        yield


def test_unfinished_requests_do_not_block_other_requests(stack: Stack, unfinished_requests: None) -> None:
    assert stack.works()
