"""Limits on requests and tokens per minute. They are shared by all servers and reported in headers."""

from __future__ import annotations

import re

import httpx2
from llava_server.middleware.auth import is_public

from tests.machine_speed import scaled
from tests.server.api_key_cli import ApiKeyCli, bearer, chat_with_key
from tests.server.conftest import OwnStack, Serve
from tests.waiting import wait_until


def test_requests_per_minute_are_shared_by_all_servers_and_reported_in_headers(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, serve: Serve
) -> None:
    here, there = own_stack(auth=True).server, serve(auth=True)
    limited, unlimited = api_key_cli.create("--requests-per-min", "2"), api_key_cli.create()
    wait_until(lambda: httpx2.get(f"{there.url}/readyz", timeout=scaled(30)).status_code == 200)
    first, second = chat_with_key(here.url, limited), chat_with_key(there.url, limited)
    assert (first.status_code, second.status_code) == (200, 200)
    remaining = [response.headers["x-ratelimit-remaining-requests"] for response in (first, second)]
    assert remaining == ["1", "0"]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert re.fullmatch(r"(\d+m)?\d+m?s", first.headers["x-ratelimit-reset-requests"])
    assert "x-ratelimit-limit-tokens" not in first.headers
    for server in (here, there):
        rejected = chat_with_key(server.url, limited)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(rejected.headers["retry-after"]) <= 30
        assert rejected.headers["x-ratelimit-remaining-requests"] == "0"
    response = chat_with_key(here.url, unlimited)
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


def test_tokens_are_charged_by_estimate_and_reconciled_with_the_tokens_used(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    url = own_stack(auth=True).server.url
    key = api_key_cli.create("--tokens-per-min", "1000")
    first = chat_with_key(url, key, max_tokens=900)
    assert first.status_code == 200
    used = first.json()["usage"]["total_tokens"]
    second = chat_with_key(url, key, max_tokens=900)  # fails if the first estimate is not corrected
    assert second.status_code == 200
    assert int(second.headers["x-ratelimit-remaining-tokens"]) >= 1000 - 2 * used - 1
    rejected = chat_with_key(url, key, max_tokens=4000)
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "1000 tokens per minute" in rejected.json()["error"]["message"]


def test_requests_to_all_routes_that_require_a_key_are_charged(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    server = own_stack(auth=True).server
    key = api_key_cli.create("--requests-per-min", "1")
    with httpx2.Client(base_url=server.url, headers=bearer(key), timeout=scaled(60)) as http:
        assert http.get("/v1/models").status_code == 200
        routes = [
            (method, re.sub(r"{.*?}", "x", path))
            for path, operations in server.app.openapi()["paths"].items()
            for method in operations
        ]
        assert len(routes) > 40
        for method, path in routes:
            status = http.request(method, path).status_code
            assert (status == 429) != is_public(path), (method, path)
