"""Clients that stream responses without a pause while containers are stopped, and check every text."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from llava_client import Client
from PIL import Image
from tiny.drawing import draw
from tiny.scenes import sample_scene

from tests.machine_speed import scaled
from tests.waiting import wait_until

NUM_QUESTIONS = 6
NUM_CLIENTS = 6
MAX_TOKENS = 400
MAX_RETRIES = 60  # while a service is recreated, the delay between retries is at most 8 seconds


class Question:
    """A request whose response has a fixed text: half of them are greedy, the others sampled with a seed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._image: Image.Image = draw(sample_scene("containers", number))
        sampling = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0.0}
        self._options: dict[str, Any] = {"ignore_eos": True, **sampling}

    def stream(self, client: Client, on_delta: threading.Event | None = None) -> str:
        """Return the text of the response. Sets ``on_delta`` once a part of it has been received."""
        with client.stream(
            "Describe the image.", image=self._image, max_tokens=MAX_TOKENS, extra_body=self._options
        ) as stream:
            for _ in stream:
                if on_delta:
                    on_delta.set()
            return stream.text


QUESTIONS = tuple(Question(number) for number in range(NUM_QUESTIONS))


def undisturbed_texts(url: str, api_key: str) -> list[str]:
    """Return the text of each question while all containers are running."""
    with Client(url, api_key) as client:
        return [question.stream(client) for question in QUESTIONS]


class Load:
    """Several clients, each of which asks one question after another until the load is stopped."""

    def __init__(self, url: str, api_key: str, expected: list[str]) -> None:
        self._url = url
        self._api_key = api_key
        self._expected = expected
        self._numbers = itertools.count()
        self._is_stopped = threading.Event()
        self._streaming = [threading.Event() for _ in range(NUM_CLIENTS)]
        self._pool = ThreadPoolExecutor(NUM_CLIENTS)
        self._clients: list[Future[None]] = []
        self._lock = threading.Lock()
        self.num_finished = 0
        self.wrong: list[str] = []

    def __enter__(self) -> Load:
        self._clients = [self._pool.submit(self._run, streaming) for streaming in self._streaming]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopped.set()
        self._pool.shutdown(wait=True)

    @property
    def num_streaming(self) -> int:
        """The number of clients that have received a part of a response but not yet all of it."""
        return sum(event.is_set() for event in self._streaming)

    def wait_until_streaming(self) -> int:
        """Wait until at least half of the clients are receiving a response, and return their number."""
        self._raise_failure()
        wait_until(lambda: self.num_streaming >= NUM_CLIENTS // 2, "streams", timeout_s=90)
        return self.num_streaming

    def wait_until_finished(self, number: int) -> None:
        """Wait until this many more responses are complete."""
        target = self.num_finished + number
        wait_until(lambda: self.num_finished >= target or self._has_failed(), "responses", timeout_s=120)
        self._raise_failure()

    def stop(self) -> int:
        """Wait for the running responses and return the number of all responses.

        Raises the error of a client if a request failed.
        """
        self._is_stopped.set()
        for client in self._clients:
            client.result(scaled(180))
        return self.num_finished

    def _run(self, streaming: threading.Event) -> None:
        with Client(self._url, self._api_key, max_retries=MAX_RETRIES) as client:
            while not self._is_stopped.is_set():
                question = QUESTIONS[next(self._numbers) % NUM_QUESTIONS]
                text = question.stream(client, streaming)
                streaming.clear()
                with self._lock:
                    self.num_finished += 1
                    if text != self._expected[question.number]:
                        self.wrong.append(text)

    def _has_failed(self) -> bool:
        return any(client.done() and client.exception() for client in self._clients)

    def _raise_failure(self) -> None:
        for client in self._clients:
            if client.done():
                client.result()
