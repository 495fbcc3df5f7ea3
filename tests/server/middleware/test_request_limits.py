"""RequestLimitMiddleware: limits on open requests, body size and upload time."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from tests.server.conftest import OwnStack, Stack, connect
from tests.waiting import wait_until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def status_line(connection: socket.socket) -> bytes:
    return connection.recv(65536).partition(b"\r\n")[0]


def test_too_many_open_requests_return_503(own_stack: OwnStack) -> None:
    stack = own_stack(max_open_requests=1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(stack.chat, "hold")
        wait_until(lambda: stack.worker.assignments)
        response = stack.chat("say yes")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert stack.http.get("/livez").status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200
    assert stack.works()


def test_a_body_above_the_limit_returns_413_before_it_has_arrived(own_stack: OwnStack) -> None:
    stack = own_stack(max_body_mb=1)
    with connect(stack) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999\r\n\r\n{")
        assert b" 413 " in status_line(connection)
    with connect(stack) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(17):
            connection.sendall(chunk)
        response = b""
        while not response.endswith(b"}"):
            response += connection.recv(65536)
        assert b" 413 " in response.partition(b"\r\n")[0]
        assert b"request_too_large" in response
    assert stack.works()


def test_the_total_size_of_all_request_bodies_is_limited(own_stack: OwnStack) -> None:
    stack = own_stack(max_body_mb=2, max_inflight_body_mb=1)
    response = stack.chat("x" * (1024 * 1024 + 10))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert stack.works()


def test_a_parsed_body_no_longer_counts_toward_the_limit(own_stack: OwnStack) -> None:
    stack = own_stack(max_body_mb=1, max_inflight_body_mb=1)
    padding = [{"type": "text", "text": "x" * 600_000}]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(stack.chat, [*padding, {"type": "text", "text": "hold"}])
        wait_until(lambda: stack.worker.assignments)
        assert stack.chat([*padding, {"type": "text", "text": "say yes"}]).status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200


def test_a_body_that_does_not_arrive_in_time_returns_408(own_stack: OwnStack) -> None:
    stack = own_stack(body_timeout_s=0.1)
    with connect(stack) as connection:
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\n{")
        assert b" 408 " in status_line(connection)


def test_endless_headers_are_rejected(stack: Stack) -> None:
    with connect(stack) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert b" 400 " in status_line(connection)
