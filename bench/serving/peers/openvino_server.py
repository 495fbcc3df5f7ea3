"""A minimal OpenAI-compatible server for OpenVINO GenAI's continuous batching, for this benchmark only.

    python openvino_server.py FOLDER PORT CACHE_GIB      (in an environment with openvino-genai and pillow)

One thread runs the pipeline, and one thread per request waits for its output. The server supports streaming
with greedy sampling, and images as data URLs. There is no error handling: if the pipeline fails, the server
exits.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import openvino
import openvino_genai
from PIL import Image

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass
class Request:
    prompt: str
    images: list[Any]
    config: Any
    pieces: queue.Queue[str | None] = field(default_factory=queue.Queue)  # None marks the end of the output
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    handle: Any = None


class Batcher:
    """Runs the pipeline for all requests."""

    def __init__(self, folder: str, cache_gib: int) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = cache_gib
        scheduling.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduling, "CPU")
        self._tokenizer = self._pipeline.get_tokenizer()
        self._arrivals: queue.Queue[Request] = queue.Queue()
        self._running: list[Request] = []
        self._ids = itertools.count()

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens. For an image, the tokens of its placeholder are counted."""
        return int(self._tokenizer.encode(prompt).input_ids.shape[1])

    def generate(self, request: Request) -> Iterator[str]:
        """Yield the pieces of text as they are generated."""
        self._arrivals.put(request)
        while (piece := request.pieces.get()) is not None:
            yield piece

    def run(self) -> None:
        """Run forever. If the pipeline fails, exit the process, because no request can be completed."""
        try:
            while True:
                self._admit()
                self._pipeline.step()
                for request in list(self._running):
                    self._read_output(request)
        finally:
            traceback.print_exc()
            os._exit(1)

    def _admit(self) -> None:
        while not self._running or not self._arrivals.empty():
            request = self._arrivals.get()
            request_id = next(self._ids)
            # An empty list of images would select a different overload.
            images = (request.images,) if request.images else ()
            request.handle = self._pipeline.add_request(request_id, request.prompt, *images, request.config)
            self._running.append(request)

    def _read_output(self, request: Request) -> None:
        while request.handle.can_read():
            for output in request.handle.read().values():
                request.token_ids += output.generated_ids
        text = self._tokenizer.decode(request.token_ids)
        if len(text) > len(request.text) and not text.endswith("\ufffd"):
            request.pieces.put(text[len(request.text) :])
            request.text = text
        if request.handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
            self._running.remove(request)
            request.pieces.put(None)


def read_request(body: dict[str, Any]) -> Request:
    """Render the conversation with the vicuna_v1 template, as the other servers do."""
    images: list[Any] = []
    prompt = SYSTEM + " "
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(_part(part, images) for part in parts)
        prompt += f"USER: {text} ASSISTANT:" if message["role"] == "user" else f" {text}</s>"
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = body["max_tokens"]
    config.ignore_eos = bool(body.get("ignore_eos"))
    config.apply_chat_template = False
    return Request(prompt, images, config)


def _part(part: dict[str, Any], images: list[Any]) -> str:
    if part["type"] == "text":
        return str(part["text"])
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None]
    images.append(openvino.Tensor(pixels))
    return f"<ov_genai_image_{len(images) - 1}>\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    batcher: Batcher

    def do_GET(self) -> None:
        body = b'{"object": "list", "data": [{"id": "openvino"}]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        request = read_request(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for piece in self.batcher.generate(request):
            self._event({"choices": [{"index": 0, "delta": {"content": piece}}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        num_prompt, num_out = self.batcher.count_tokens(request.prompt), len(request.token_ids)
        usage = {"prompt_tokens": num_prompt, "completion_tokens": num_out}
        self._event({"choices": [], "usage": {**usage, "total_tokens": num_prompt + num_out}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Disable the request log."""


def main() -> None:
    folder, port, cache_gib = sys.argv[1:]
    Handler.batcher = Batcher(folder, int(cache_gib))
    threading.Thread(target=Handler.batcher.run, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
