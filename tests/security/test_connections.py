"""Clients that open many connections, send nothing, send slowly, or do not read. Other clients are served."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.machine_speed import scaled
from tests.processes import ControllerProcess
from tests.security.raw_http import connect, is_closed, slow_reader, status_line
from tests.server.conftest import OwnStack, Stack
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

OPEN_FILES = 256
TIMEOUT_S = 2
FILE_BYTES = 24 << 20
NEVER_S = 3600  # for limits that a test must not reach
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
UPLOAD = POST + b"Content-Length: 1000\r\n\r\n{"


@pytest.fixture(scope="module")
def controller(valkey_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """A controller without workers that may open only 256 files."""
    controller = ControllerProcess(
        f"unix://{valkey_socket}?db=998",
        tmp_path_factory.mktemp("connections") / "log",
        header_timeout_s=TIMEOUT_S,
        idle_timeout_s=TIMEOUT_S,
        send_timeout_s=TIMEOUT_S,
    )
    controller.prefix = ("sh", "-c", f'ulimit -n {OPEN_FILES}; exec "$@"', "sh")
    controller.start()
    try:
        wait_until(lambda: "is listening on" in controller.log or controller.status is not None)
        assert controller.status is None, controller.log
        yield controller
    finally:
        controller.kill()


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def open_connection(url: str, first: bytes, *, source: str = "127.0.0.1") -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), scaled(30), source_address=(source, 0))
    connection.sendall(first)
    return connection


def response_to(url: str, request: bytes, *, source: str = "127.0.0.1") -> bytes:
    """Send a request and read until the server closes the connection."""
    with open_connection(url, request, source=source) as connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def receive_until(connection: socket.socket, end: bytes) -> None:
    """Read a response until it contains ``end``."""
    wait_until(lambda: end in connection.recv(65536))


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize(
    ("request_", "follow_up"),
    [
        (b"", b""),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b""),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"a"),
        (GET, b""),
        (b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n", b"a"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n", b"a"),
    ],
    ids=["nothing", "half headers", "slow headers", "idle", "slow body", "slow GET body"],
)
def test_connections_that_do_not_send_a_request_are_closed(
    own_stack: OwnStack, request_: bytes, follow_up: bytes
) -> None:
    stack = own_stack(header_timeout_s=0.3, idle_timeout_s=0.3, body_timeout_s=0.3)
    with connect(stack) as connection:
        connection.sendall(request_)

        def is_closed_while_sending() -> bool:
            try:
                connection.sendall(follow_up)
            except OSError:
                return True
            return is_closed(connection)

        wait_until(is_closed_while_sending, "the server to close the connection", timeout_s=8)
    wait_until(lambda: stack.server.metric("llava_open_connections") <= 1)
    assert sum(closed_by(stack, reason) for reason in ("idle", "header_timeout", "body_timeout")) >= 1
    wait_until(lambda: works_within_timeouts(stack))


def works_within_timeouts(stack: Stack) -> bool:
    """Send a request. On a busy machine, its connection may be closed like the others."""
    try:
        return stack.works()
    except httpx2.RemoteProtocolError:
        return False


def closed_by(stack: Stack, reason: str) -> float:
    return stack.server.metric("llava_connections_closed_total", reason=reason)


def test_a_process_with_few_file_descriptors_serves_others_during_300_connections(
    controller: ControllerProcess, sockets: ExitStack
) -> None:
    process = psutil.Process(controller.pid)
    before_s = cpu_seconds(process)
    for number in range(300):
        first = b"" if number % 2 else b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
        sockets.enter_context(open_connection(controller.url, first))
        if number % 50 == 49:
            assert httpx2.get(f"{controller.url}/livez", timeout=scaled(5)).status_code == 200
    assert process.num_fds() < OPEN_FILES
    # A server that retries a failing accept() in a loop would use all of its CPU.
    during_s = cpu_seconds(process) - before_s
    assert during_s < 3, during_s
    assert "Traceback" not in controller.log


def test_the_limit_on_open_files_is_reported_and_respected(controller: ControllerProcess) -> None:
    assert (
        f"the limit on open files is {OPEN_FILES} (ulimit -n), so at most 160 connections" in controller.log
    )


def test_a_limit_on_open_files_that_is_too_low_is_reported_in_one_sentence(
    valkey_socket: Path, tmp_path: Path
) -> None:
    controller = ControllerProcess(f"unix://{valkey_socket}?db=998", tmp_path / "log")
    controller.prefix = ("sh", "-c", 'ulimit -n 100; exec "$@"', "sh")
    controller.start()
    assert controller.wait() == 2
    assert controller.log == (
        "llava-server: The limit on open files is 100 (ulimit -n), but the server needs at least 112. "
        "Raise the limit.\n"
    )


def test_forty_readers_of_a_large_file_that_do_not_read_are_disconnected(
    controller: ControllerProcess, sockets: ExitStack
) -> None:
    upload = httpx2.post(
        f"{controller.url}/v1/files",
        data={"purpose": "batch"},
        files={"file": ("a", bytes(FILE_BYTES))},
        timeout=scaled(30),
    )
    assert upload.status_code == 200, upload.text
    url = f"/v1/files/{upload.json()['id']}/content"
    process = psutil.Process(controller.pid)
    before = process.memory_info().rss
    request = f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    readers = [sockets.enter_context(slow_reader(controller.url, request)) for _ in range(40)]
    peak = 0

    def all_are_closed() -> bool:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)
        return all(map(is_closed, readers))

    wait_until(all_are_closed, "the readers to be disconnected", timeout_s=10 * TIMEOUT_S)
    assert peak - before < 100 << 20, f"RSS grew by {(peak - before) >> 20} MiB"
    content = httpx2.get(f"{controller.url}{url}", timeout=scaled(30)).content
    assert content == bytes(FILE_BYTES)


def test_a_download_that_is_slower_than_the_timeout_but_progresses_is_complete(own_stack: OwnStack) -> None:
    stack = own_stack(send_timeout_s=0.5, idle_timeout_s=0.5)
    data = bytes(3 << 20)
    file = stack.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", data)}).json()
    request = f"GET /v1/files/{file['id']}/content HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    received, pause = bytearray(), threading.Event()
    with slow_reader(stack.server.url, request, buffer_bytes=1 << 16) as connection:
        while part := connection.recv(1 << 16):
            received += part
            if len(received) % (1 << 18) < len(part):
                pause.wait(0.2)  # in total 2.4 s
    assert received.partition(b"\r\n\r\n")[2] == data, len(received)


def chat_request(
    content: str, *, path: str = "/v1/chat/completions", headers: str = "", **fields: object
) -> bytes:
    """Return the bytes of a chat request."""
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": MODEL, "messages": messages, **fields})
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


LONG = "say-all " + "x" * 1_000_000
LARGE_RESPONSES = {
    "JSON": chat_request(LONG) * 8,
    "SSE": chat_request(LONG, stream=True) * 8,
    "NDJSON": chat_request(LONG, path="/api/chat", stream=True) * 8,
    "static files": b"GET /playground/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000,
    "pipelined": GET * 100_000,
}


@pytest.mark.parametrize("kind", LARGE_RESPONSES)
def test_clients_that_do_not_read_any_kind_of_response_are_disconnected(
    own_stack: OwnStack, kind: str, sockets: ExitStack
) -> None:
    stack = own_stack(send_timeout_s=0.5)
    connection = sockets.enter_context(slow_reader(stack.server.url, b""))
    sender = threading.Thread(target=send_all, args=(connection, LARGE_RESPONSES[kind]))
    sender.start()
    wait_until(lambda: closed_by(stack, "write_timeout") == 1, timeout_s=10)
    wait_until(lambda: is_closed(connection))
    sender.join()
    wait_until(lambda: stack.server.services.controller.num_open == 0)
    assert stack.works()


def send_all(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the server has closed the connection
        connection.sendall(data)


def test_the_total_size_of_unread_responses_is_limited(own_stack: OwnStack, sockets: ExitStack) -> None:
    stack = own_stack(max_unsent_mb=1, send_timeout_s=NEVER_S)
    data = bytes(8 << 20)
    file = stack.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", data)}).json()
    request = f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    readers = [sockets.enter_context(slow_reader(stack.server.url, request)) for _ in range(24)]
    wait_until(lambda: closed_by(stack, "unsent_limit") >= 6)
    wait_until(lambda: is_closed(readers[0]))
    assert stack.http.get(f"/v1/files/{file['id']}/content").content == data


def test_slow_uploads_do_not_occupy_the_slots_of_open_requests(
    own_stack: OwnStack, sockets: ExitStack
) -> None:
    stack = own_stack(max_open_requests=16, body_timeout_s=NEVER_S)
    uploads = [sockets.enter_context(open_connection(stack.server.url, UPLOAD)) for _ in range(16)]
    wait_until(lambda: stack.server.metric("llava_num_open_requests") == 16)
    wait_until(stack.works, "another client to be served", timeout_s=10)
    assert uploads[0].recv(4096).startswith(b"HTTP/1.1 503 ")
    assert not any(map(is_closed, uploads[1:]))
    wait_until(stack.works)


def test_an_address_has_a_maximum_number_of_connections(own_stack: OwnStack, sockets: ExitStack) -> None:
    stack = own_stack(max_address_connections=8, body_timeout_s=NEVER_S)
    url, source = stack.server.url, "127.0.0.2"
    busy = [sockets.enter_context(hold(stack, source)) for _ in range(8)]
    wait_until(lambda: len(stack.worker.assignments) == 8)
    refused = response_to(url, GET, source=source)
    assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: 1\r\n" in refused and b'"code":"overloaded"' in refused
    assert stack.works()  # from another address
    stack.worker.release.set()
    for connection in busy:
        receive_until(connection, b"done")


def test_addresses_with_active_connections_leave_some_to_others(
    own_stack: OwnStack, sockets: ExitStack
) -> None:
    stack = own_stack(max_connections=32, max_address_connections=16, body_timeout_s=NEVER_S)
    for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
        for _ in range(20):
            sockets.enter_context(hold(stack, address))
    reasons = ("rejected", "address_limit", "connection_limit")
    wait_until(lambda: sum(closed_by(stack, reason) for reason in reasons) == 60 - (16 + 8 + 4))
    wait_until(lambda: len(stack.worker.assignments) == 16 + 8 + 4)
    assert stack.works()  # from another address
    stack.worker.release.set()


def test_a_new_connection_does_not_replace_one_of_an_address_that_has_fewer(
    own_stack: OwnStack, sockets: ExitStack
) -> None:
    stack = own_stack(
        max_connections=32, max_address_connections=24, idle_timeout_s=NEVER_S, header_timeout_s=NEVER_S
    )
    oldest = sockets.enter_context(open_connection(stack.server.url, b"GET /"))
    for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
        for _ in range(30):
            sockets.enter_context(open_connection(stack.server.url, b"GET /", source=address))
    wait_until(lambda: closed_by(stack, "connection_limit") >= 90 + 1 - 32)
    assert not is_closed(oldest)


def hold(stack: Stack, source: str) -> socket.socket:
    """Send a request whose response is generated when the worker's ``release`` is set."""
    return open_connection(stack.server.url, chat_request("silent"), source=source)


@pytest.mark.parametrize("limit", ["max_address_connections", "max_connections"])
def test_a_new_connection_replaces_the_one_that_has_been_idle_longest(
    own_stack: OwnStack, sockets: ExitStack, limit: str
) -> None:
    stack = own_stack(**{limit: 16}, idle_timeout_s=NEVER_S, header_timeout_s=NEVER_S)
    active = sockets.enter_context(hold(stack, "127.0.0.1"))
    wait_until(lambda: stack.worker.assignments)
    idle = [sockets.enter_context(open_connection(stack.server.url, b"GET /")) for _ in range(20)]
    wait_until(lambda: all(map(is_closed, idle[:5])))
    assert stack.works()
    assert not is_closed(idle[-1])
    stack.worker.release.set()
    receive_until(active, b"done")


def test_a_slow_stream_is_not_cut_by_any_timeout(own_stack: OwnStack) -> None:
    names = ("header_timeout_s", "idle_timeout_s", "body_timeout_s", "send_timeout_s")
    stack = own_stack(**dict.fromkeys(names, 0.2), keepalive_s=0.5)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as response:
        keepalives = 0
        for line in response.iter_lines():
            keepalives += line.startswith(":")
            if keepalives == 4:  # 2 s
                stack.worker.release.set()
            if "done" in line:
                return
    pytest.fail("the stream was cut")


def continued(url: str) -> bytes:
    """Send a body only after the server has asked for it."""
    request = chat_request("say yes", headers="Expect: 100-continue\r\nConnection: close\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    with open_connection(url, head + b"\r\n\r\n") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "send",
    [
        lambda url: response_to(url, b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n"),
        lambda url: response_to(url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        lambda url: response_to(
            url,
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
            b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        ),
        continued,
    ],
    ids=["HTTP/1.0", "close", "upgrade", "100-continue"],
)
def test_other_ways_to_use_a_connection_still_work(stack: Stack, send: Callable[[str], bytes]) -> None:
    assert send(stack.server.url).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_thousand_pipelined_requests_are_processed_while_others_are_served(stack: Stack) -> None:
    requests = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with open_connection(stack.server.url, b"") as connection:
        sender = threading.Thread(target=send_all, args=(connection, requests + last))
        sender.start()
        assert stack.works()
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        sender.join()
    assert (received.count(b"HTTP/1.1 404 "), received.count(b"HTTP/1.1 200 ")) == (1000, 1)


@pytest.mark.parametrize("headers", [b"", b"Authorization: Bearer unknown\r\n"], ids=["no key", "wrong key"])
def test_a_body_in_many_small_chunks_is_rejected_before_it_takes_much_time(
    own_stack: OwnStack, headers: bytes
) -> None:
    """A chunk of one byte takes as much time as a large one, so a limit on bytes is not enough."""
    stack = own_stack(auth=bool(headers))
    body = b"1\r\n \r\n" * 100_000
    with connect(stack) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(POST + headers + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        while connection.recv(65536):
            pass
        assert is_closed(connection)
    assert stack.server.metric("llava_event_loop_stall_cpu_seconds") < 0.5


def test_a_body_in_chunks_of_usual_sizes_is_accepted(stack: Stack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
    content = json.dumps(body) + " " * 99_000

    def chunks(num_bytes: int) -> Iterator[bytes]:
        for start in range(0, len(content), num_bytes):
            yield content[start : start + num_bytes].encode()

    for num_bytes in (150, 1000, 65_536):
        headers = {"content-type": "application/json"}
        response = stack.http.post("/v1/chat/completions", content=chunks(num_bytes), headers=headers)
        assert response.status_code == 200, response.text


def with_headers(headers: bytes) -> bytes:
    return GET.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n")


def with_lf(headers: bytes) -> bytes:
    return with_headers(headers).replace(b"\r\n", b"\n")


def with_trailers(trailers: bytes) -> bytes:
    chunked = GET.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    return chunked + b"1\r\n \r\n0\r\n" + trailers + b"\r\n"


@pytest.mark.parametrize("request_with", [with_headers, with_lf, with_trailers])
def test_a_request_with_thousands_of_headers_is_rejected_before_they_are_parsed(
    stack: Stack, request_with: Callable[[bytes], bytes]
) -> None:
    def status(num_headers: int) -> bytes:
        headers = b"".join(b"X-%d: 1\r\n" % number for number in range(num_headers))
        return status_line(stack, request_with(headers))

    assert status(0) == status(200) == b"HTTP/1.1 200 OK"
    assert status(300) in (b"HTTP/1.1 400 Bad Request", b"closed")
    assert status(5000) in (b"HTTP/1.1 400 Bad Request", b"closed")
