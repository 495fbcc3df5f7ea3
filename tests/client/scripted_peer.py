"""A real HTTP peer whose answers are scripted, one named behaviour a request.

It stands for the network's other side; nothing of the client is replaced.
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

Behaviour = Callable[[BaseHTTPRequestHandler], None]

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
class Recorded:
    """What the client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Peer:
    """``script`` what the next requests get; after the script every chat is answered."""

    url: str = ""
    requests: list[Recorded] = field(default_factory=list)
    behaviours: deque[Behaviour] = field(default_factory=deque)
    resumptions: deque[Behaviour] = field(default_factory=deque)
    listed: list[str] = field(default_factory=lambda: ["tiny-llava"])

    def script(self, *behaviours: Behaviour) -> None:
        """Answer the next requests to the chat endpoint this way, in order."""
        self.behaviours.extend(behaviours)

    @property
    def chats(self) -> list[Recorded]:
        """The chat requests so far."""
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


def answers(handler: BaseHTTPRequestHandler) -> None:
    """A whole completion, or the stream of it: whichever was asked for."""
    body = handler.request_body  # type: ignore[attr-defined]
    if body.get("stream"):
        streams(*answer_events())(handler)
        return
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
    completion = {"id": "chatcmpl-1", "model": body["model"], "choices": [choice], "usage": USAGE}
    send(handler, 200, json.dumps(completion).encode())


def refuses(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Behaviour:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": "some_error", "param": "messages", "code": code}

    def behave(handler: BaseHTTPRequestHandler) -> None:
        send(handler, status, json.dumps({"error": error}).encode(), **headers)

    return behave


def says(status: int, body: bytes, kind: str) -> Behaviour:
    """Any bytes, as a proxy or a wrong address would send them."""
    return lambda handler: send(handler, status, body, kind)


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    """Closes the connection. Not by a reset, which would take back what was sent and not yet read."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def is_silent_until(released: threading.Event) -> Behaviour:
    """Says nothing until released."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        released.wait(30)
        hangs_up(handler)

    return behave


def event(data: Any, offset: int = 0) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"id: job-1:{offset}\ndata: {text}\n\n".encode()


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "model": "tiny-llava", "choices": [choice]}


def answer_events() -> list[bytes]:
    """The events of a whole streamed answer, with a keep-alive comment between."""
    texts = [event(chunk({"content": delta}), i) for i, delta in enumerate(DELTAS, 1)]
    return [
        event(chunk({"role": "assistant", "content": ""})),
        b": keep-alive\n\n",
        *texts,
        event(chunk({}, "stop"), 4),
        event({"id": "chatcmpl-1", "model": "tiny-llava", "choices": [], "usage": USAGE}, 4),
        event("[DONE]", 4),
    ]


def streams(*pieces: bytes, then: Behaviour | None = None) -> Behaviour:
    """Sends ``pieces``, each as one HTTP chunk; then ends the body, or does what ``then`` says."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
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

    return behave


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    peer: Peer
    request_body: Any = None

    def do_GET(self) -> None:
        self._record(None)
        listing = {
            "object": "list",
            "data": [{"id": name, "owned_by": "us", "context_length": 512} for name in self.peer.listed],
        }
        if self.path == "/v1/models":
            send(self, 200, json.dumps(listing).encode())
        elif self.path.startswith("/v1/chat/completions/") and self.peer.resumptions:
            self.peer.resumptions.popleft()(self)
        else:
            refuses(404)(self)

    def do_DELETE(self) -> None:
        self._record(None)
        send(self, 200, b"{}")

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self._record(json.loads(self.rfile.read(length)))
        behaviours = self.peer.behaviours
        (behaviours.popleft() if behaviours else answers)(self)

    def _record(self, body: Any) -> None:
        self.request_body = body
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.peer.requests.append(Recorded(self.command, self.path, headers, body))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr for the tests."""


class PeerServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is what some tests are about."""


@contextmanager
def serving() -> Iterator[Peer]:
    """A peer that listens on a free port."""
    peer = Peer()
    handler = type("Handler", (_Handler,), {"peer": peer})
    with PeerServer(("127.0.0.1", 0), handler) as server:
        peer.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="peer")
        thread.start()
        yield peer
        server.shutdown()
        thread.join()
