"""Requests for models whose workers are started on demand wait for a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.conftest import Serve, Server, text_of
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

SETTINGS: dict[str, Any] = {"auth": False, "on_demand_models": (MODEL,)}
Start = Callable[[], ScriptedWorker]


@pytest.fixture
def start_worker(queue_url: str) -> Iterator[Start]:
    workers: list[ScriptedWorker] = []

    def start() -> ScriptedWorker:
        workers.append(ScriptedWorker(queue_url).start())
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


@contextmanager
def sent(server: Server, *contents: object) -> Iterator[list[Future[httpx2.Response]]]:
    """Send one chat request per content at the same time."""
    body: dict[str, object] = {"model": MODEL, "max_tokens": 100}
    with ThreadPoolExecutor(8) as pool:
        post = partial(httpx2.post, f"{server.url}/v1/chat/completions", timeout=scaled(60))
        yield [pool.submit(post, json={**body, "messages": [user(content)]}) for content in contents]


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def waiting(server: Server) -> tuple[float, float]:
    """Return the exported number of waiting requests and tokens."""
    requests = server.metric("llava_num_requests_waiting", model_name=MODEL)
    return requests, server.metric("llava_num_tokens_waiting", model_name=MODEL)


def has_waiting(server: Server, num_requests: int) -> bool:
    return waiting(server)[0] == num_requests


def retire(server: Server, worker: ScriptedWorker) -> None:
    worker.stop()
    wait_until(lambda: server.services.registry.num_workers(MODEL) == 0, "the worker to be gone")


def test_a_request_waits_for_the_first_worker_and_is_then_completed(
    serve: Serve, start_worker: Start
) -> None:
    server = serve(**SETTINGS)
    image = [part(encoded(scene())), {"type": "text", "text": "describe"}]
    with sent(server, "say yes", image) as (text, described):
        wait_until(lambda: waiting(server) == (2, 2), "the requests to be counted")
        assert server.services.controller.num_open == 0, "the server cannot preprocess the image yet"
        start_worker()
        assert text_of(text.result()) == "yes"
        assert text_of(described.result()) == "user:[40x20]describe"
    wait_until(lambda: waiting(server) == (0, 0), "the queue to be empty")


def test_a_known_model_without_workers_queues_its_requests(serve: Serve, start_worker: Start) -> None:
    server = serve(**SETTINGS)
    first = start_worker()
    wait_until(lambda: server.services.registry.num_workers(MODEL) == 1)
    retire(server, first)
    observer = serve(**SETTINGS)  # another server, which has not seen a worker
    with sent(server, "say a", "say b") as responses:
        num_tokens = 2 * (len("say a") / 3 + 100)
        for each in (server, observer):
            wait_until(partial(has_waiting, each, 2), "the queue to be exported")
            assert waiting(each)[1] == pytest.approx(num_tokens)
        start_worker()
        assert [text_of(response.result()) for response in responses] == ["a", "b"]


def test_a_request_fails_with_a_retry_time_if_no_worker_starts_in_time(serve: Serve) -> None:
    server = serve(**SETTINGS, queue_timeout_s=0.1)
    with sent(server, "say yes") as [response]:
        error = response.result().json()["error"]
    assert (response.result().status_code, error["code"], error["param"]) == (408, "queue_timeout", "model")
    assert int(response.result().headers["retry-after"]) >= 1
    wait_until(lambda: waiting(server) == (0, 0), "the request to be subtracted")


def test_a_waiting_request_fails_when_the_server_shuts_down(serve: Serve) -> None:
    server = serve(**SETTINGS, queue_timeout_s=scaled(20))
    with sent(server, "say yes") as [response]:
        wait_until(lambda: waiting(server)[0] == 1)
        server.services.shutdown.begin()
        assert response.result().json()["error"]["code"] == "shutting_down"


def test_only_the_named_models_are_started_on_demand(serve: Serve) -> None:
    server = serve(auth=False, on_demand_models=("another",))
    with sent(server, "say yes") as [response]:
        assert response.result().status_code in (404, 503)
    without = serve(auth=False)
    for each, status in ((server, 200), (without, 503)):
        assert httpx2.get(f"{each.url}/readyz", timeout=scaled(30)).status_code == status
    model = httpx2.get(f"{server.url}/v1/models/another", timeout=scaled(30))
    assert model.json()["error"]["code"] == "no_worker"
