"""Web pages of other origins cannot use or read a server without API keys. All responses restrict browsers.

``tests/e2e/playground/test_foreign_pages.py`` verifies the same in a real browser.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from llava_server.operator.server import create_admin_app
from llava_server.settings import load_settings

from tests.security.raw_http import connect, status_line
from tests.server.api_key_cli import bearer
from tests.server.conftest import OwnStack, Serve, Stack
from tests.server.document_check import error_of
from tests.server.openapi_document import DOCUMENT
from tests.server.scripted_worker import MODEL

EVIL = "https://evil.test"
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
KEY = "key-of-a-page"
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
OPERATIONS += [("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/playground/app.js")]
FOREIGN = [
    {"origin": EVIL},
    {"origin": "null"},
    {"origin": "http://localhost:1"},
    {"origin": "chrome-extension://abcdef"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},  # another port of this machine
    {
        "origin": EVIL,
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    },
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
]
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def status_of(stack: Stack, request: str) -> int:
    """Send a raw request and return the status of the response."""
    return int(status_line(stack, request.encode()).split(b" ", 2)[1])


def concrete(path: str) -> str:
    return re.sub(r"{\w+}", "x", path)


def rejection(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, str(error_of(response)["code"])


# DNS rebinding: the browser treats the server as a part of evil.test, and sends this name in the Host header.


@pytest.mark.parametrize("method_and_path", OPERATIONS, ids=" ".join)
def test_a_rebound_name_reaches_no_route(stack: Stack, method_and_path: tuple[str, str]) -> None:
    method, path = method_and_path
    response = stack.http.request(method, concrete(path), headers={"host": "evil.test:8000"})
    assert rejection(response) == (403, "host_not_allowed")
    assert "LLAVA_ALLOWED_HOSTS" in error_of(response)["message"]


OTHER_HOSTS = [
    *("evil.test", "evil.test:8000", "evil.test.", "127.0.0.1.evil.test", "localhost.evil.test"),
    *(
        "notlocalhost",
        "localhost..",
        "localhost:80@evil.test",
        "localhost,evil.test",
        "localhost/",
        "::1",
        "",
    ),
    *("0.0.0.0", "192.168.1.5", "[2001:db8::1]:8000", "127.1", "2130706433", "[localhost]", "evil.test\x00"),
]
OWN_HOSTS = [
    *(
        "localhost",
        "LocalHost:1",
        "localhost.",
        "app.localhost:8000",
        "127.0.0.1",
        "127.8.8.8:9",
        "[::1]:8000",
    ),
    *("[0:0:0:0:0:0:0:1]", "host.docker.internal:8000"),
]


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_a_loopback_server_without_authentication_rejects_other_hosts(stack: Stack, host: str) -> None:
    assert status_of(stack, f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n") in (400, 403)


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_loopback_names_and_addresses_are_allowed(stack: Stack, host: str) -> None:
    assert status_of(stack, f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n") == 200


@pytest.mark.parametrize(
    "request_head",
    [
        "GET /livez HTTP/1.0\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n",
        "GET /livez HTTP/1.0\r\nHost: evil.test\r\nHost: localhost\r\n\r\n",
        "GET http://evil.test/livez HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "GET http://evil.test/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["missing", "two", "two in HTTP/1.0", "absolute", "absolute and local"],
)
def test_missing_duplicate_and_absolute_hosts_are_rejected(stack: Stack, request_head: str) -> None:
    assert status_of(stack, request_head) in (400, 403, 404)


def test_listed_names_are_allowed_in_addition(serve: Serve) -> None:
    server = serve(auth=False, allowed_hosts="llava.example.com, *.lan, 10.0.0.7")
    assert {
        host: httpx2.get(f"{server.url}/livez", headers={"host": host}).status_code
        for host in (
            "LLAVA.example.com:443",
            "a.lan",
            "10.0.0.7",
            "localhost",
            "lan",
            "x.example.com",
            "10.0.0.8",
        )
    } == {"LLAVA.example.com:443": 200, "a.lan": 200, "10.0.0.7": 200, "localhost": 200} | dict.fromkeys(
        ("lan", "x.example.com", "10.0.0.8"), 403
    )


@pytest.mark.parametrize(
    "rule", ["llava.example.com:8000", "http://llava.example.com", "a.*.example", "*.", "a b"]
)
def test_an_invalid_host_is_refused_in_one_sentence(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load_settings(("--allowed-hosts", f"localhost,{rule}"))
    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert f"{rule!r} is not a host name without a port" in message and message.count("\n") == 1


@pytest.mark.parametrize("settings", [{"auth": True}, {"auth": False, "host": "0.0.0.0"}])
def test_any_host_is_allowed_with_authentication_or_on_other_addresses(serve: Serve, settings: Any) -> None:
    server = serve(**settings)
    assert httpx2.get(f"{server.url}/livez", headers={"host": "llava.example.com"}).status_code == 200


@pytest.mark.parametrize("settings", [{"auth": True}, {"auth": False}])
def test_probes_that_use_an_address_are_allowed_with_a_list_of_names(serve: Serve, settings: Any) -> None:
    server = serve(host="0.0.0.0", allowed_hosts=("llava.example.com",), **settings)
    hosts = ("10.1.2.3:8000", "127.0.0.1:8000", "llava.example.com", "evil.test")
    statuses = [httpx2.get(f"{server.url}/livez", headers={"host": host}).status_code for host in hosts]
    assert statuses == [200, 200, 200, 403]


# Requests that a page of another origin makes a browser send


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: " ".join(headers.values()))
def test_a_foreign_page_reaches_no_route(stack: Stack, headers: dict[str, str]) -> None:
    for method, path in OPERATIONS:
        response = stack.http.request(method, concrete(path), headers=headers)
        assert rejection(response) == (403, "origin_not_allowed"), (method, path)
        assert "LLAVA_CORS_ORIGINS" in error_of(response)["message"]


def test_a_foreign_page_can_neither_upload_a_file_nor_start_a_job(stack: Stack) -> None:
    form = {"purpose": "batch"}
    upload = stack.http.post("/v1/files", data=form, files={"file": b"x"}, headers={"origin": EVIL})
    text = {"origin": EVIL, "content-type": "text/plain"}
    prompt = json.dumps({"model": MODEL, "prompt": "say x"})
    generated = stack.http.post("/api/generate", content=prompt, headers=text)
    assert (rejection(upload), rejection(generated)) == ((403, "origin_not_allowed"),) * 2
    assert stack.http.get("/v1/files").json()["data"] == []
    assert stack.worker.assignments == []


def test_a_foreign_request_is_rejected_before_its_body_is_read(stack: Stack) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**20}\r\n"
    assert status_of(stack, f"{head}Origin: {EVIL}\r\n\r\n") == 403
    assert status_of(stack, f"{head.replace('localhost', 'evil.test')}\r\n") == 403


def test_own_pages_links_and_programs_are_served(stack: Stack) -> None:
    own = str(stack.http.base_url).rstrip("/")
    same = {"origin": "https://llava.example.com", "sec-fetch-site": "same-origin"}  # behind a proxy
    for headers in ({}, {"origin": own}, {"origin": own.upper()}, same, {"sec-fetch-site": "none"}):
        assert stack.http.post(CHAT, json=BODY, headers=headers).status_code == 200, headers
    for path in ("/", "/docs"):
        assert stack.http.get(path, headers=LINK).status_code == 200
    assert stack.http.post(CHAT, json=BODY, headers=LINK).status_code == 403
    with connect(stack) as connection:
        host = f"localhost:{stack.http.base_url.port}"
        head = f"GET /livez HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_listed_origins_can_use_the_server(own_stack: OwnStack) -> None:
    stack = own_stack(cors_origins=("http://localhost:3000",))
    headers = {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}
    response = stack.http.post(CHAT, json=BODY, headers=headers)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, headers["origin"])
    for origin in ("http://localhost:3001", "https://localhost:3000", "null"):
        response = stack.http.post(CHAT, json=BODY, headers={**headers, "origin": origin})
        assert rejection(response) == (403, "origin_not_allowed")


def test_a_key_allows_pages_of_any_origin_to_send_requests(own_stack: OwnStack) -> None:
    """Browsers add no key to requests, so only a page to which a user gave the key can send it."""
    stack = own_stack(api_keys=(KEY,))
    assert stack.http.post(CHAT, json=BODY, headers={"origin": EVIL, **bearer(KEY)}).status_code == 200
    assert stack.http.post(CHAT, json=BODY, headers={"origin": EVIL}).status_code == 401


# The admin port, which requires no key


@pytest.fixture
async def admin(serve: Serve) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_admin_app(serve(auth=True, cors_origins=("*",), allowed_hosts=("*",)).services)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:9000") as client:
        yield client


@pytest.mark.anyio
async def test_the_admin_port_rejects_other_hosts_and_web_pages(admin: httpx2.AsyncClient) -> None:
    requests = [("GET", "/metrics"), ("GET", "/workers"), ("GET", "/livez"), ("POST", "/workers/x/unload")]
    for method, path in requests:
        rebound = await admin.request(method, path, headers={"host": "evil.test:9000"})
        assert rejection(rebound) == (403, "host_not_allowed"), path
        for headers in FOREIGN:
            assert rejection(await admin.request(method, path, headers=headers)) == (
                403,
                "origin_not_allowed",
            )
    assert (await admin.get("/metrics")).status_code == 200


@pytest.mark.anyio
async def test_the_admin_port_allows_its_own_name_and_the_addresses_of_probes(serve: Serve) -> None:
    server = serve(auth=True, admin_host="server-admin", allowed_hosts=("metrics.example.com",))
    transport = httpx2.ASGITransport(app=create_admin_app(server.services))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:9000") as client:
        for host in ("server-admin:9000", "172.19.0.3:9000", "localhost", "metrics.example.com"):
            assert (await client.get("/metrics", headers={"host": host})).status_code == 200, host
        assert (await client.get("/metrics", headers={"host": "evil.test"})).status_code == 403


# Responses


def responses(stack: Stack) -> Iterator[httpx2.Response]:
    form = {"purpose": "batch"}
    file = stack.http.post("/v1/files", data=form, files={"file": b"<script>"}).json()["id"]
    yield stack.http.get(f"/v1/files/{file}/content")
    yield stack.http.delete(f"/v1/files/{file}")
    yield from (
        stack.http.get(path) for path in ("/", "/docs", "/openapi.json", "/playground/app.js", "/nowhere")
    )
    yield stack.http.post(CHAT, json=BODY)
    yield stack.http.post(CHAT, json={**BODY, "stream": True})
    yield stack.http.post(CHAT, json={})
    yield stack.http.post(CHAT, json=BODY, headers={"origin": EVIL})
    yield stack.http.get("/livez", headers={"host": "evil.test"})
    yield stack.http.get("/", headers={"if-none-match": stack.http.get("/").headers["etag"]})


def test_every_response_forbids_framing_sniffing_and_embedding(stack: Stack) -> None:
    for response in responses(stack):
        policy = response.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and "unsafe" not in policy, response.url
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["referrer-policy"] == "no-referrer"


# The API reference


def test_the_reference_uses_only_files_of_this_server_and_the_policy_of_the_playground(stack: Stack) -> None:
    page = stack.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy == stack.http.get("/").headers["content-security-policy"]
    assert "<script" not in page.text and " style=" not in page.text
    files = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page.text))
    assert {name for name in files if not name.startswith("/")} == set()
    for name in files:
        assert stack.http.get(name).status_code == 200, name


def test_the_reference_describes_every_route_and_links_to_existing_sections(stack: Stack) -> None:
    page = stack.http.get("/docs").text
    for path, methods in DOCUMENT["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert targets and targets <= set(re.findall(r'id="([^"]+)"', page))


def test_text_in_the_reference_is_escaped() -> None:
    from llava_server.api.openapi.page import render_page

    evil = "<script>alert(1)</script>`</code><img src=x>`"
    schema = {
        "type": "object",
        "description": evil,
        "properties": {evil: {"enum": [evil], "description": evil}},
    }
    operation = {
        "tags": [evil],
        "operationId": evil,
        "summary": evil,
        "description": evil,
        "responses": {"200": {"description": evil, "content": {evil: {"schema": {"const": evil}}}}},
    }
    page = render_page(
        {
            "info": {"title": evil, "version": evil, "summary": evil},
            "paths": {evil: {"get": operation}},
            "components": {"schemas": {evil: schema}},
        }
    )
    assert "<script" not in page and "<img" not in page
