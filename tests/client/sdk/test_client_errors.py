"""Failures: exception classes, their attributes, and retries."""

from __future__ import annotations

import email.utils
import socket
import threading
import time

import pytest
from llava_client import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    LlavaError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RetryPolicy,
    ServiceUnavailableError,
)
from llava_client.errors import parse_retry_after
from llava_client.retries import RetryState

from tests.client.blocking_clients import AnyClient
from tests.client.conftest import MakeClient
from tests.client.scripted_server import (
    TEXT,
    Responder,
    ScriptedServer,
    closes_connection,
    completes,
    hangs_until,
    returns,
    returns_error,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, APIStatusError),
        (429, RateLimitError),
        (500, InternalServerError),
        (502, InternalServerError),
        (503, ServiceUnavailableError),
        (302, APIStatusError),
    ],
)
def test_each_status_has_its_class_and_all_attributes(
    make_client: MakeClient, server: ScriptedServer, status: int, kind: type[APIStatusError]
) -> None:
    server.script(returns_error(status, "too long", code="the_code", retry_after="2"))
    with pytest.raises(APIStatusError) as caught:
        make_client(max_retries=0).chat("Hello?")
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, APIError) and isinstance(error, LlavaError)
    assert (error.status_code, error.message, error.code) == (status, "too long", "the_code")
    assert (error.param, error.type, error.request_id) == ("messages", "some_error", "req-7")
    assert (error.retry_after_s, error.should_retry) == (2.0, None)
    assert str(error) == "too long (request req-7)"
    assert isinstance(error.body, dict)


def test_the_message_contains_an_excerpt_of_a_proxy_error_page(
    make_client: MakeClient, server: ScriptedServer
) -> None:
    server.script(returns(502, b"<h1>Bad\n gateway</h1>" + b"x" * 1000, "text/html"))
    with pytest.raises(InternalServerError, match="HTTP 502 from .*<h1>Bad gateway</h1>") as caught:
        make_client(max_retries=0).chat("Hello?")
    assert len(caught.value.message) < 400
    assert caught.value.code is None


def test_the_message_for_an_empty_error_page_contains_the_status(
    make_client: MakeClient, server: ScriptedServer
) -> None:
    server.script(returns(500, b"", "text/html"))
    with pytest.raises(InternalServerError, match="HTTP 500 from http"):
        make_client(max_retries=0).chat("Hello?")


@pytest.mark.parametrize(
    "failing",
    [
        returns_error(408),
        returns_error(409),
        returns_error(429),
        returns_error(500),
        returns_error(503),
        closes_connection,
    ],
)
def test_temporary_failures_are_retried(
    client: AnyClient, server: ScriptedServer, failing: Responder
) -> None:
    server.script(failing, failing)
    assert client.chat("Hello?").text == TEXT
    assert len(server.chats) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_permanent_failures_are_not_retried(client: AnyClient, server: ScriptedServer, status: int) -> None:
    server.script(returns_error(status))
    with pytest.raises(APIStatusError):
        client.chat("Hello?")
    assert len(server.chats) == 1


def test_the_error_of_the_last_attempt_is_raised(make_client: MakeClient, server: ScriptedServer) -> None:
    server.script(returns_error(500), returns_error(503), completes)
    with pytest.raises(ServiceUnavailableError):
        make_client(max_retries=1).chat("Hello?")
    assert len(server.chats) == 2


def test_x_should_retry_takes_precedence(client: AnyClient, server: ScriptedServer) -> None:
    server.script(returns_error(500, x_should_retry="false"))
    with pytest.raises(InternalServerError):
        client.chat("Hello?")
    server.script(returns_error(404, x_should_retry="true"))
    assert client.chat("Hello?").text == TEXT


def test_the_delay_requested_by_the_server_is_respected(
    make_client: MakeClient, server: ScriptedServer
) -> None:
    server.script(returns_error(429, retry_after_ms="40"))
    started = time.monotonic()
    make_client().chat("Hello?", model="m")
    assert time.monotonic() - started >= 0.04


def test_a_long_requested_delay_raises_the_error(client: AnyClient, server: ScriptedServer) -> None:
    server.script(returns_error(429, retry_after="121"))
    with pytest.raises(RateLimitError) as caught:
        client.chat("Hello?")
    assert caught.value.retry_after_s == 121
    assert len(server.chats) == 1


def test_an_unreachable_server_is_a_connection_error_with_its_url(make_client: MakeClient) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(APIConnectionError, match=url) as caught:
            make_client(url).chat("Hello?")
    assert not isinstance(caught.value, APITimeoutError)
    assert caught.value.__cause__ is not None


def test_a_server_that_sends_no_data_is_a_timeout_without_retries(
    client: AnyClient, server: ScriptedServer
) -> None:
    released = threading.Event()
    server.script(hangs_until(released))
    with pytest.raises(APITimeoutError, match="Increase the timeout"):
        client.chat("Hello?", model="m", timeout=0.1)
    released.set()
    assert len(server.chats) == 1


def test_a_connect_timeout_is_retried(make_client: MakeClient) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        try:
            with pytest.raises(APIConnectionError, match="did not accept"):
                make_client(f"http://127.0.0.1:{address[1]}", timeout=0.1, max_retries=1).models()
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "3", "retry-after-ms": "soon"}, 3.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_all_forms_of_retry_after_are_parsed(headers: dict[str, str], expected: float | None) -> None:
    assert parse_retry_after(headers) == expected


def test_a_retry_after_date_is_converted_to_a_delay() -> None:
    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    wait_s = parse_retry_after({"retry-after": later})
    assert wait_s is not None and 0 < wait_s <= 60


def test_delays_double_up_to_the_limit_and_jitter_only_shortens_them() -> None:
    exact = RetryPolicy(jitter=0.0)
    assert [exact.delay_s(n) for n in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    waits = {RetryPolicy().delay_s(1) for _ in range(100)}
    assert len(waits) > 1
    assert all(wait is not None and 0.375 <= wait <= 0.5 for wait in waits)


def test_a_permanent_failure_is_final() -> None:
    assert RetryState(RetryPolicy(), 2).next_delay_s(APIError("no")) is None
