"""Clients notice nothing when a worker is killed or drained in mid-stream: the bundled model over HTTP."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llava_client import Client
from tiny.drawing import draw
from tiny.scenes import sample_scene

from tests.e2e.conftest import FP32
from tests.e2e.playground.site import controller, worker
from tests.e2e.worker_process import WorkerProcess
from tests.machine_speed import scaled
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NUM_STREAMS = 8
MAX_TOKENS = 120
# Six places each for eight streams: both workers hold some.
FLAGS = (*FP32, "--max-num-sequences", "6", "--lease-s", "1")


@pytest.fixture
def start_worker(queue_url: str, tmp_path: Path) -> Iterator[Callable[[], WorkerProcess]]:
    workers: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        log = tmp_path / f"worker-{len(workers)}.log"
        workers.append(WorkerProcess(queue_url, log, *FLAGS, model="tiny"))
        started = workers[-1]
        wait_until(lambda: "worker ready" in started.log, "a worker")
        return started

    yield start
    for started in workers:
        started.kill()


class Streams:
    """Eight clients that each ask about a picture of their own; ``texts`` are their answers at the end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._num_deltas = [0] * NUM_STREAMS
        self._pool = ThreadPoolExecutor(NUM_STREAMS)
        self._answers = [self._pool.submit(self._ask, number) for number in range(NUM_STREAMS)]

    def num_under_way(self) -> int:
        """Streams with some text already."""
        return sum(count >= 5 for count in self._num_deltas)

    def num_finished(self) -> int:
        return sum(answer.done() for answer in self._answers)

    def texts(self) -> list[str]:
        with self._pool:
            return [answer.result(scaled(120)) for answer in self._answers]

    def _ask(self, number: int) -> str:
        """Half of the answers are greedy, half are drawn with a seed."""
        drawn = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0.0}
        picture = draw(sample_scene("survival", number))
        with (
            Client(base_url=self._url) as client,
            client.stream(
                "Describe the picture.",
                image=picture,
                max_tokens=MAX_TOKENS,
                extra_body={"ignore_eos": True, **drawn},
            ) as stream,
        ):
            for _ in stream:
                self._num_deltas[number] += 1
            return stream.text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The eight texts when nobody dies."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with (
        running_redis() as url,
        worker(url, folder, "--model", "tiny", *FP32),
        controller(url, folder) as site,
    ):
        texts = Streams(site.url).texts()
    assert len(set(texts)) > 1
    return texts


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_eight_clients_notice_nothing_when_one_of_two_workers_goes(
    queue_url: str,
    tmp_path: Path,
    start_worker: Callable[[], WorkerProcess],
    undisturbed: list[str],
    how: signal.Signals,
) -> None:
    leaving, _ = start_worker(), start_worker()
    with controller(queue_url, tmp_path, LLAVA_LEASE_S="1") as site:
        streams = Streams(site.url)
        wait_until(lambda: streams.num_under_way() == NUM_STREAMS, "eight streams in mid-sentence")
        assert streams.num_finished() < NUM_STREAMS
        leaving.send(how)
        assert streams.texts() == undisturbed
        wait_until(lambda: leaving.status is not None, "the worker's end")
        assert leaving.status == (0 if how is signal.SIGTERM else -how)


def test_eight_clients_wait_for_a_new_worker_when_the_only_one_is_killed(
    queue_url: str, tmp_path: Path, start_worker: Callable[[], WorkerProcess], undisturbed: list[str]
) -> None:
    only = start_worker()
    with controller(queue_url, tmp_path, LLAVA_LEASE_S="1") as site:
        streams = Streams(site.url)
        wait_until(lambda: streams.num_under_way() >= 6, "streams in mid-sentence")
        only.kill()
        num_finished = streams.num_finished()
        start_worker()
        assert streams.texts() == undisturbed
        assert num_finished < NUM_STREAMS
