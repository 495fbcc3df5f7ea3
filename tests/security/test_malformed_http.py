"""Malformed and oversized HTTP requests, and requests that attempt to create many metric series."""

from __future__ import annotations

import pytest

from tests.security.raw_http import status_line
from tests.server.conftest import Stack


@pytest.mark.parametrize(
    "headers",
    [b"x-long: " + b"a" * 2**20, b"\r\n".join(b"x-%d: a" % number for number in range(100_000))],
    ids=["long", "many"],
)
def test_oversized_headers_are_not_read_completely(stack: Stack, headers: bytes) -> None:
    line = status_line(stack, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + headers + b"\r\n\r\n")
    assert line == b"closed" or line.split()[1].startswith(b"4"), line
    assert status_line(stack, b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-a: b\r\n\r\n").endswith(b"200 OK")


@pytest.mark.parametrize("client", [b"unknown", b"", b"1.2.3.4, _hidden", b"fe80::1%eth0", b"1.2.3.4:80"])
def test_a_forwarded_client_need_not_be_an_ip_address(stack: Stack, client: bytes) -> None:
    """RFC 7239, section 6: a proxy can send "unknown" or another identifier."""
    request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: " + client + b"\r\n\r\n"
    assert status_line(stack, request).endswith(b"200 OK")


@pytest.mark.parametrize("first", [b"content-length: 30", b"transfer-encoding: chunked"])
def test_a_request_whose_body_has_two_lengths_is_rejected(stack: Stack, first: bytes) -> None:
    """RFC 9112, section 6.1: the request may be an attempt at request smuggling."""
    lengths = sorted([b"content-length: 30", b"transfer-encoding: chunked"], key=lambda name: name != first)
    head = b"\r\n".join([b"POST /livez HTTP/1.1", b"host: localhost", *lengths])
    line = status_line(stack, head + b"\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert line.split()[1] == b"400"


@pytest.mark.parametrize(
    ("size", "status"),
    [
        (b"4", b"405"),  # POST is not allowed
        (b"0" * 16 + b"4", b"405"),
        (b"1" * 9, b"400"),
        (b"F" * 17, b"400"),
        (b"F" * 17 + b";extension", b"400"),
        (b"F" * 100, b"400"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"a"], ids=["without data", "with data"])
def test_a_chunk_that_is_larger_than_any_body_is_rejected_before_its_data_arrives(
    stack: Stack, size: bytes, status: bytes, body: bytes
) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    if status == b"405":
        head, body = head.replace(b"/v1/chat/completions", b"/livez"), b"abcd"
    assert status_line(stack, head + size + b"\r\n" + body).split()[1] == status


def test_invalid_requests_are_counted(stack: Stack) -> None:
    before = stack.server.metric("llava_connections_closed_total", reason="invalid_request")
    assert status_line(stack, b"no request\r\n\r\n").split()[1] == b"400"
    assert stack.server.metric("llava_connections_closed_total", reason="invalid_request") == before + 1


def test_a_thousand_ranges_return_the_file_once(stack: Stack) -> None:
    plain = stack.http.get("/playground/app.js")
    ranges = {"range": "bytes=" + ",".join(f"{n}-" for n in range(1000))}
    response = stack.http.get("/playground/app.js", headers=ranges)
    assert (response.status_code, response.content) == (200, plain.content)


def test_unknown_model_names_create_no_series(stack: Stack) -> None:
    def num_series() -> int:
        return sum(not line.startswith("#") for line in stack.http.get("/metrics").text.splitlines())

    assert stack.chat(model="before").status_code == 404
    before = num_series()
    for number in range(200):
        assert stack.chat(model=f"model-{number}").status_code == 404
        assert stack.http.get(f"/v1/models/model-{number}").status_code == 404
        assert stack.http.get(f"/nowhere/{number}").status_code == 404
    assert stack.chat(model="\x00\n\"}{'").status_code == 404
    assert num_series() - before <= 2  # one for each error code that has not occurred before
    assert "model-7" not in stack.http.get("/metrics").text
