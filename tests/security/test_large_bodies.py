"""Request bodies that are expensive to parse do not delay other clients, and do not use up the memory."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.machine_speed import scaled
from tests.processes import ControllerProcess
from tests.waiting import wait_until

MIB = 2**20
SIZE = 30_000_000  # bytes, less than the limit on the size of a body
MAX_STALL_CPU_S = 0.5
MAX_GROWTH_MIB = 300

CHAT, COMPLETIONS, FILES = "/v1/chat/completions", "/v1/completions", "/v1/files"


def with_field(value: bytes) -> bytes:
    """Return a valid chat request with this value in a field that the API does not define."""
    return b'{"model":"none","messages":[{"role":"user","content":"x"}],"unknown":' + value + b"}"


def repeated(item: bytes) -> bytes:
    return item * (SIZE // len(item))


def messages(num_messages: int, part: bytes) -> bytes:
    message = b'{"role":"user","content":[' + b",".join([part] * 256) + b"]}"
    return b'{"model":"none","messages":[' + b",".join([message] * num_messages) + b"]}"


def form(content: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return head + content + b"\r\n--b--\r\n"


# Bodies by name, with their path and the status of the response. 503 means that the body was accepted,
# because no worker serves the model.
ATTACKS = {
    "arrays": (CHAT, with_field(b"[" + repeated(b"[],") + b"1]"), 413),
    "nested arrays": (CHAT, with_field(repeated(b"[")), 413),
    "strings": (CHAT, with_field(b"[" + repeated(b'"a",') + b"1]"), 413),
    "fields": (CHAT, with_field(b"{" + repeated(b'"a":1,') + b'"b":1}'), 413),
    "empty parts": (CHAT, messages(1024, b"{}"), 413),
    "the maximum number of parts": (CHAT, messages(63, b'{"type":"text","text":""}'), 503),
    "invalid token IDs": (
        COMPLETIONS,
        b'{"model":"none","prompt":[1' + b',"a"' * 1_000_000 + b"]}",
        400,
    ),
    "escaped quotes": (CHAT, with_field(b'"' + repeated(rb"\"") + b'"'), 503),
    "escaped backslashes": (CHAT, with_field(b'"' + repeated(rb"\\") + b'"'), 503),
    "lone surrogates": (CHAT, with_field(b'"' + repeated(rb"\ud800") + b'"'), 400),
    "newlines before a lone surrogate": (CHAT, with_field(b'"' + repeated(rb"\n") + rb'\ud800"'), 503),
    "a schema in a string": (
        CHAT,
        with_field(b"1")[:-1] + b',"guided_json":"[' + repeated(b"[],") + b'1]"}',
        400,
    ),
    "an uploaded file": (FILES, form(repeated(b"\r\n")), 400),
}


@pytest.fixture(scope="module")
def controller(valkey_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """A controller without workers."""
    log = tmp_path_factory.mktemp("large_bodies") / "log"
    controller = ControllerProcess(f"unix://{valkey_socket}?db=997", log)
    controller.start()
    try:
        wait_until(lambda: "is listening on" in controller.log or controller.status is not None)
        assert controller.status is None, controller.log
        send(controller, CHAT, with_field(repeated(b" ") + b"1"))  # allocates buffers
        yield controller
    finally:
        controller.kill()


def send(controller: ControllerProcess, path: str, body: bytes) -> int:
    media_type = "multipart/form-data; boundary=b" if path == FILES else "application/json"
    headers = {"content-type": media_type}
    response = httpx2.post(controller.url + path, content=body, headers=headers, timeout=scaled(60))
    return response.status_code


def memory_mib(controller: ControllerProcess) -> float:
    return float(psutil.Process(controller.pid).memory_info().rss) / MIB


class PeakMemory:
    """The largest amount of memory that the controller has used since this object was created, in MiB."""

    def __init__(self, controller: ControllerProcess) -> None:
        self._status = Path(f"/proc/{controller.pid}/status")
        Path(f"/proc/{controller.pid}/clear_refs").write_text("5")  # resets VmHWM
        self.before_mib = memory_mib(controller)

    @property
    def growth_mib(self) -> float:
        [line] = [line for line in self._status.read_text().splitlines() if line.startswith("VmHWM")]
        return float(line.split()[1]) / 1024 - self.before_mib


def serves_others_until(controller: ControllerProcess, is_done: threading.Event) -> int:
    """Send requests of another client until the event is set. Return the number of responses."""
    num_responses = 0
    with httpx2.Client(base_url=controller.url, timeout=scaled(30)) as client:
        while True:
            assert client.get("/v1/models").status_code == 200
            num_responses += 1
            if is_done.is_set():
                return num_responses


@pytest.mark.parametrize("name", ATTACKS)
def test_an_expensive_body_neither_stalls_the_event_loop_nor_occupies_memory(
    controller: ControllerProcess, name: str
) -> None:
    path, body, status = ATTACKS[name]
    peak = PeakMemory(controller)
    assert send(controller, path, body) == status
    assert controller.metric("llava_event_loop_stall_cpu_seconds") < MAX_STALL_CPU_S
    assert peak.growth_mib < MAX_GROWTH_MIB


def test_bodies_in_small_chunks_that_arrive_at_once_do_not_stall_the_event_loop(
    controller: ControllerProcess,
) -> None:
    """Each request has the maximum number of small chunks. The server is stopped until all have arrived."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    address = ("127.0.0.1", int(controller.url.rpartition(":")[2]))
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(address)) for _ in range(300)]
        wait_until(lambda: controller.metric("llava_open_connections") >= len(connections))
        controller.send(signal.SIGSTOP)
        try:
            for connection in connections:
                connection.sendall(head + b"1\r\n \r\n" * 1000)
        finally:
            controller.send(signal.SIGCONT)
        wait_until(lambda: controller.metric("llava_num_open_requests") == 300)
    assert 0 < controller.metric("llava_event_loop_stall_cpu_seconds") < MAX_STALL_CPU_S


def test_others_are_served_while_expensive_bodies_arrive_and_memory_is_returned(
    controller: ControllerProcess,
) -> None:
    path, body, status = ATTACKS["arrays"]
    peak = PeakMemory(controller)
    is_done = threading.Event()
    with ThreadPoolExecutor(4) as clients:
        served = clients.submit(serves_others_until, controller, is_done)
        try:
            attacks = [clients.submit(send, controller, path, body) for _ in range(3)]
            assert [attack.result() for attack in attacks] == [status] * 3
        finally:
            is_done.set()
        assert served.result() > 4
    assert 0 < controller.metric("llava_event_loop_stall_cpu_seconds") < MAX_STALL_CPU_S
    assert peak.growth_mib < MAX_GROWTH_MIB
    wait_until(lambda: memory_mib(controller) - peak.before_mib < 64, "the memory to be returned")
