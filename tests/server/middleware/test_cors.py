"""CORS is disabled by default, and cannot give web pages access to a server without authentication."""

from __future__ import annotations

import httpx2
import pytest
from llava_server.api.openapi.headers import HEADERS
from llava_server.settings import load_settings

from tests.server.api_key_cli import ApiKeyCli, bearer
from tests.server.conftest import OwnStack, Stack
from tests.server.scripted_worker import MODEL

ORIGIN, OTHER = "https://app.example.com", "https://evil.test"
CHAT = "/v1/chat/completions"
KEY = "key-of-a-page"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}


@pytest.fixture
def shared(own_stack: OwnStack) -> Stack:
    return own_stack(api_keys=(KEY,), cors_origins=(ORIGIN,), max_body_mb=1)


def preflight(stack: Stack, origin: str, *, method: str = "POST", **headers: str) -> httpx2.Response:
    asked = {"origin": origin, "access-control-request-method": method, **headers}
    return stack.http.options(CHAT, headers=asked)


def allowed_origin(response: httpx2.Response) -> str | None:
    found: str | None = response.headers.get("access-control-allow-origin")
    return found


def test_a_preflight_request_needs_no_key_and_allows_any_header(shared: Stack) -> None:
    names = "authorization,content-type,x-api-key,anthropic-version,x-stainless-lang"
    response = preflight(shared, ORIGIN, **{"access-control-request-headers": names})
    assert response.status_code == 200
    assert allowed_origin(response) == ORIGIN
    assert response.headers["access-control-allow-headers"] == names
    assert {"GET", "POST", "DELETE"} <= set(response.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-credentials" not in response.headers


def test_other_origins_and_methods_are_not_allowed(shared: Stack) -> None:
    for origin in (OTHER, "null", ORIGIN + ".evil.test", ORIGIN.replace("https", "http"), f"{ORIGIN}:444"):
        assert allowed_origin(preflight(shared, origin)) is None, origin
        response = shared.http.post(CHAT, json=BODY, headers={**bearer(KEY), "origin": origin})
        assert allowed_origin(response) is None, origin
    assert preflight(shared, ORIGIN, method="PUT").status_code == 400


def test_responses_streams_and_errors_have_cors_headers(shared: Stack) -> None:
    with_key = {**bearer(KEY), "origin": ORIGIN}
    responses = {
        200: shared.http.post(CHAT, json=BODY, headers=with_key),
        401: shared.http.post(CHAT, json=BODY, headers={"origin": ORIGIN}),
        400: shared.http.post(CHAT, json={}, headers=with_key),
        404: shared.http.get("/nowhere", headers=with_key),
        405: shared.http.put(CHAT, headers=with_key),
        413: shared.http.post(CHAT, content=bytes(2**20 + 1), headers=with_key),
        415: shared.http.post(CHAT, content=b"{}", headers=with_key),
    }
    stream = shared.http.post(CHAT, json={**BODY, "stream": True}, headers=with_key)
    assert stream.headers["content-type"].startswith("text/event-stream")
    for status, response in (*responses.items(), (200, stream)):
        assert (response.status_code, allowed_origin(response)) == (status, ORIGIN)
        assert "Origin" in response.headers["vary"]
        exposed = set(response.headers["access-control-expose-headers"].split(", "))
        assert HEADERS.keys() == exposed


def test_rate_limit_drain_and_internal_errors_have_cors_headers(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    stack = own_stack(auth=True, cors_origins=(ORIGIN,))
    headers = {**bearer(api_key_cli.create("--requests-per-min", "1")), "origin": ORIGIN}
    statuses = {}
    for _ in range(2):
        response = stack.http.post(CHAT, json=BODY, headers=headers)
        statuses[response.status_code] = allowed_origin(response)
    free = {**bearer(api_key_cli.create()), "origin": ORIGIN}
    stack.server.services.registry.__dict__["_models"] = None
    response = stack.http.get("/v1/models", headers=free)
    statuses[response.status_code] = allowed_origin(response)
    stack.server.services.shutdown.begin()
    response = stack.http.post(CHAT, json=BODY, headers=free)
    statuses[response.status_code] = allowed_origin(response)
    assert statuses == dict.fromkeys((200, 429, 500, 503), ORIGIN)


def test_all_origins_can_be_allowed_for_a_server_with_authentication(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=(KEY,), cors_origins=("*",))
    assert allowed_origin(preflight(stack, OTHER)) == "*"
    response = stack.http.post(CHAT, json=BODY, headers={**bearer(KEY), "origin": OTHER})
    assert (response.status_code, allowed_origin(response)) == (200, "*")
    assert "access-control-allow-credentials" not in response.headers


REFUSED = {
    "--no-auth --host 0.0.0.0 --cors-origins https://a.example": "0.0.0.0 is not a loopback address",
    "--no-auth --host :: --cors-origins https://a.example": "requires authentication",
    "--no-auth --host serve.example --cors-origins https://a.example": "requires authentication",
    "--no-auth --host 0.0.0.0 --cors-origins *": "requires authentication",
    "--no-auth --cors-origins *": "any website could use this server",
    "--cors-origins *,https://a.example": "Use either * or exact origins",
    "--cors-origins a.example": "'a.example' is not an origin",
    "--cors-origins https://a.example/path": "is not an origin",
    "--cors-origins https://*.example": "is not an origin",
    "--cors-origins null": "is not an origin",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_an_unsafe_or_invalid_setting_is_refused_in_one_sentence(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load_settings(("--auth", *flags.split()) if "--no-auth" not in flags else flags.split())
    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert REFUSED[flags] in message and message.count("\n") == 1 and "Traceback" not in message


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_exact_origins_are_allowed_without_authentication_on_a_loopback_address(host: str) -> None:
    origins = "http://localhost:3000, HTTPS://App.Example.com/, chrome-extension://abcdef, http://[::1]:80"
    settings = load_settings(("--no-auth", "--host", host, "--cors-origins", origins))
    assert settings.cors_origins == (
        *("http://localhost:3000", "https://app.example.com"),
        *("chrome-extension://abcdef", "http://[::1]:80"),
    )
