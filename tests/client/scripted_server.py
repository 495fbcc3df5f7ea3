"""A real HTTP server with scripted responses: one responder per request.

It simulates llava-serve, broken networks and proxies, so that the client can be tested without mocks.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.machine_speed import scaled

Responder = Callable[[BaseHTTPRequestHandler], None]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
DELTAS = ("A red ", "circle", " — très bien", ".")
TEXT = "".join(DELTAS)
USAGE = {
    "prompt_tokens": 71,
    "completion_tokens": 4,
    "total_tokens": 75,
    "prompt_tokens_details": {"cached_tokens": 64},
}


@dataclass
class RecordedRequest:
    """A request received from the client."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """The requests received so far and the responders for the next ones.

    If no responders are left, a chat request gets a complete response.
    """

    url: str = ""
    requests: list[RecordedRequest] = field(default_factory=list)
    responders: deque[Responder] = field(default_factory=deque)
    resumptions: deque[Responder] = field(default_factory=deque)
    models: list[str] = field(default_factory=lambda: ["tiny-llava"])
    model_fields: dict[str, Any] = field(default_factory=dict)  # added to each model

    def script(self, *responders: Responder) -> None:
        """Use ``responders`` for the next requests to the chat endpoint, in order."""
        self.responders.extend(responders)

    @property
    def chats(self) -> list[RecordedRequest]:
        """The chat requests received so far."""
        return [request for request in self.requests if request.path.endswith("/chat/completions")]

    @property
    def last_body(self) -> Any:
        """The body of the latest chat request."""
        return self.chats[-1].body


def send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json", **headers: str
) -> None:
    handler.send_response(status)
    for name, value in {
        "content-type": kind,
        "content-length": str(len(body)),
        "x-request-id": "req-7",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def completes(handler: BaseHTTPRequestHandler) -> None:
    """Send a complete chat completion. If ``stream`` is set in the request, send it as a stream."""
    body = handler.request_body  # type: ignore[attr-defined]
    if body.get("stream"):
        streams(*stream_events())(handler)
        return
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
    completion = {"id": "chatcmpl-1", "model": body["model"], "choices": [choice], "usage": USAGE}
    send(handler, 200, json.dumps(completion).encode())


def returns_error(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Responder:
    """Send an error in OpenAI's format."""
    error = {"message": message, "type": "some_error", "param": "messages", "code": code}

    def respond(handler: BaseHTTPRequestHandler) -> None:
        send(handler, status, json.dumps({"error": error}).encode(), **headers)

    return respond


def returns(status: int, body: bytes, kind: str) -> Responder:
    """Send arbitrary bytes, as a proxy or an unrelated server might."""
    return lambda handler: send(handler, status, body, kind)


def closes_connection(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection gracefully. A reset would discard data that the client has not read yet."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def hangs_until(released: threading.Event) -> Responder:
    """Send nothing until ``released`` is set, then close the connection."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        released.wait(scaled(30))
        closes_connection(handler)

    return respond


def event(data: Any, offset: int = 0) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"id: job-1:{offset}\ndata: {text}\n\n".encode()


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "model": "tiny-llava", "choices": [choice]}


def stream_events() -> list[bytes]:
    """Return the events of a complete streamed response, including a keep-alive comment."""
    texts = [event(chunk({"content": delta}), i) for i, delta in enumerate(DELTAS, 1)]
    return [
        event(chunk({"role": "assistant", "content": ""})),
        b": keep-alive\n\n",
        *texts,
        event(chunk({}, "stop"), 4),
        event({"id": "chatcmpl-1", "model": "tiny-llava", "choices": [], "usage": USAGE}, 4),
        event("[DONE]", 4),
    ]


def streams(*pieces: bytes, then: Responder | None = None) -> Responder:
    """Send each of ``pieces`` as one HTTP chunk, then call ``then`` or end the body."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.send_header("transfer-encoding", "chunked")
        handler.send_header("x-request-id", "req-7")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        if then is None:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            then(handler)

    return respond


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written separately
    scripted: ScriptedServer
    request_body: Any = None

    def do_GET(self) -> None:
        self._record(None)
        listing = {
            "object": "list",
            "data": [
                {"id": name, "owned_by": "us", "context_length": 512, **self.scripted.model_fields}
                for name in self.scripted.models
            ],
        }
        if self.path == "/v1/models":
            send(self, 200, json.dumps(listing).encode())
        elif self.path.startswith("/v1/chat/completions/") and self.scripted.resumptions:
            self.scripted.resumptions.popleft()(self)
        else:
            returns_error(404)(self)

    def do_DELETE(self) -> None:
        self._record(None)
        send(self, 200, b"{}")

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self._record(json.loads(self.rfile.read(length)))
        responders = self.scripted.responders
        (responders.popleft() if responders else completes)(self)

    def _record(self, body: Any) -> None:
        self.request_body = body
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.scripted.requests.append(RecordedRequest(self.command, self.path, headers, body))

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log to stderr."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the errors caused by early disconnects, which some tests trigger on purpose."""


@contextmanager
def serving() -> Iterator[ScriptedServer]:
    """Run a scripted server on a free port."""
    scripted = ScriptedServer()
    handler = type("Handler", (_Handler,), {"scripted": scripted})
    with _Server(("127.0.0.1", 0), handler) as server:
        scripted.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="scripted server"
        )
        thread.start()
        yield scripted
        server.shutdown()
        thread.join()
