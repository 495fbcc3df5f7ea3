"""/health, /ping, /version and /load respond as the tools of other servers expect."""

from __future__ import annotations

from importlib.metadata import version

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.api_key_cli import ApiKeyCli
from tests.server.conftest import OwnStack, Serve, Stack
from tests.waiting import wait_until

PROBES = [("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")]


@pytest.mark.parametrize(("method", "path"), PROBES)
def test_the_probes_succeed_while_a_worker_is_running(stack: Stack, method: str, path: str) -> None:
    response = stack.http.request(method, path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_the_probes_fail_before_the_first_worker_and_after_the_last_one(
    serve: Serve, own_stack: OwnStack
) -> None:
    server = serve()
    for method, path in PROBES:
        response = httpx2.request(method, f"{server.url}{path}", timeout=scaled(30))
        assert response.status_code == 503
        assert response.json()["reasons"] == ["No worker has registered yet."]
    stack = own_stack()
    stack.worker.stop()
    wait_until(lambda: stack.http.get("/health").status_code == 503)
    assert stack.http.get("/health").json()["reasons"] == ["No worker is currently running."]
    assert stack.http.get("/readyz").status_code == 200


def test_the_probes_fail_while_the_server_is_draining(own_stack: OwnStack) -> None:
    stack = own_stack()
    stack.server.services.shutdown.begin()
    for method, path in PROBES:
        assert stack.http.request(method, path).json()["reasons"] == ["The server is shutting down."]


def test_the_version_is_that_of_the_distribution(stack: Stack) -> None:
    assert stack.http.get("/version").json() == {"version": version("llava-serve")}
    assert stack.http.get("/openapi.json").json()["info"]["version"] == version("llava-serve")


def test_the_load_is_the_number_of_open_outputs(stack: Stack) -> None:
    assert stack.http.get("/load").json() == {"server_load": 0}
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hold"}], "stream": True}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        assert stack.http.get("/load").json() == {"server_load": 1}
        stack.worker.release.set()
        response.read()
    wait_until(lambda: stack.http.get("/load").json() == {"server_load": 0})


def test_only_the_load_requires_a_key(own_stack: OwnStack, api_key_cli: ApiKeyCli) -> None:
    http = own_stack(auth=True).http
    assert [http.request(method, path).status_code for method, path in PROBES] == [200] * 3
    assert http.get("/version").status_code == 200
    assert http.get("/load").status_code == 401
    assert http.get("/load", headers={"x-api-key": api_key_cli.create()}).status_code == 200
