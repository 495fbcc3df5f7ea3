"""A local HTTP server between lmms-eval and the servers of the model and the judge.

lmms-eval sends each request to it. The relay returns the stored response if there is one. Otherwise, it sends
the request with retries and stores the response. Its paths begin with a random token, which other users of
the machine do not know. ``model`` or ``judge`` follows. The rest is ignored, because some tasks of lmms-eval
append ``/chat/completions`` to the judge's URL and others do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from llava_client.client import Client
from llava_client.errors import ConfigurationError, LlavaError
from llava_client.json_body import encode_json

from llava_cli.evaluation.responses_file import ResponsesFile, StoredResponse
from llava_cli.folder.requests import is_fatal

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["JUDGE", "MODEL", "Relay", "Target"]

MODEL, JUDGE = "model", "judge"
_POLL_S = 0.05  # how quickly the server shuts down


class Target:
    """A server, the model to request from it, and a prefix of idempotency keys that is unique to the run."""

    def __init__(self, client: Client, model: str, run_id: str) -> None:
        self._client = client
        self._model = model
        self._run_id = run_id

    def digest(self, body: dict[str, Any]) -> str:
        """Return the digest of a request, including the model."""
        content = json.dumps({**body, "model": self._model}, sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()

    def send(self, body: dict[str, Any], request: str, number: int) -> StoredResponse:
        """Return the response. Raises LlavaError.

        Because of the idempotency key, the server does not run a request again whose response was not yet
        stored when the previous run was killed.
        """
        options = {name: value for name, value in body.items() if name not in ("messages", "model")}
        key = hashlib.sha256(f"{self._run_id} {request} {number}".encode()).hexdigest()
        completion = self._client.chat(
            messages=body["messages"], model=self._model, idempotency_key=key, extra_body=options
        )
        return StoredResponse(request, number, completion.text, completion.finish_reason)


class Relay:
    """A context manager that runs the server on a free local port.

    Requests that the server rejects because of their content have an empty response, which counts as wrong
    and is not stored. All other errors end the evaluation: ``on_failure`` is called once, and ``failure`` is
    the error. ``on_response`` is called with the error message, if any, for each request to the model.
    """

    def __init__(
        self,
        targets: dict[str, Target],
        responses: ResponsesFile,
        *,
        on_response: Callable[[str | None], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._targets = targets
        self._responses = responses
        self._on_response = on_response
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._num_sampled: Counter[str] = Counter()
        self.failure: Exception | None = None
        self.num_rejected = 0
        self.is_closed = False
        self.token = secrets.token_hex()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[_POLL_S], daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_closed = True
        self._server.shutdown()
        self._server.server_close()

    def url(self, target: str) -> str:
        """Return the base URL of the model or the judge."""
        return f"http://127.0.0.1:{self._server.server_port}/{self.token}/{target}/v1"

    def respond(self, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the chat completion for a request to the model or the judge, or None after a failure."""
        try:
            response = self._response(name, body)
        except (LlavaError, OSError) as error:
            with self._lock:
                is_first, self.failure = self.failure is None, self.failure or error
            if is_first:
                self._on_failure()
            return None
        return _completion(response)

    def _response(self, name: str, body: dict[str, Any]) -> StoredResponse:
        target = self._targets.get(name)
        if target is None:
            raise ConfigurationError("A task is scored by a judge model. Pass --judge-url and --judge-model.")
        request = target.digest(body)
        number = self._number(body, request)
        response = self._responses.get(request, number)
        error = None
        if response is None:
            try:
                response = target.send(body, request, number)
            except LlavaError as rejection:
                if name != MODEL or is_fatal(rejection, {key: None for key in body if key != "messages"}):
                    raise
                error = str(rejection)
                response = StoredResponse(request, number, "", None)
            else:
                self._responses.store(response)
        if name == MODEL:
            with self._lock:
                self.num_rejected += error is not None
            self._on_response(error)
        return response

    def _number(self, body: dict[str, Any], request: str) -> int:
        """Return 0 for a greedy request. Identical requests whose responses are sampled are numbered."""
        if body.get("temperature") == 0:
            return 0
        with self._lock:
            self._num_sampled[request] += 1
            return self._num_sampled[request] - 1


def _completion(response: StoredResponse) -> dict[str, Any]:
    message = {"role": "assistant", "content": response.text}
    choice = {"index": 0, "message": message, "finish_reason": response.finish_reason or "stop"}
    return {
        "id": response.request,
        "object": "chat.completion",
        "created": 0,
        "model": "served",
        "choices": [choice],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback, unless the client was closed during a request because the run has ended."""
        if not self.relay.is_closed:
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, token, name, *_ = *self.path.split("/"), "", ""
        is_allowed = secrets.compare_digest(token, self.server.relay.token)
        completion = self.server.relay.respond(name, body) if is_allowed else None
        content = encode_json(completion or {"error": {"message": "The evaluation has ended."}})
        with contextlib.suppress(OSError):  # lmms-eval has exited
            self.send_response(200 if completion else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
