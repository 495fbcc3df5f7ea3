"""HTTP streams of the bundled model continue when a worker is killed or drained mid-stream."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from llava_client import Client
from tiny.drawing import draw
from tiny.scenes import sample_scene

from tests.e2e.conftest import TINY
from tests.machine_speed import scaled
from tests.processes import StartWorker, WorkerProcess, running_controller, worker_factory
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NUM_STREAMS = 8
MAX_TOKENS = 120
# With six slots per worker, eight streams occupy both workers.
SETTINGS = {**TINY, "max_num_sequences": 6, "lease_s": 1}


class Streams:
    """Eight concurrent streams, each with a different image."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._num_deltas = [0] * NUM_STREAMS
        self._pool = ThreadPoolExecutor(NUM_STREAMS)
        self._responses = [self._pool.submit(self._ask, number) for number in range(NUM_STREAMS)]

    def num_running(self) -> int:
        """Return the number of streams that have received at least five deltas."""
        return sum(count >= 5 for count in self._num_deltas)

    def num_finished(self) -> int:
        return sum(response.done() for response in self._responses)

    def texts(self) -> list[str]:
        """Wait until all streams have finished and return their texts."""
        with self._pool:
            return [response.result(scaled(120)) for response in self._responses]

    def _ask(self, number: int) -> str:
        """Stream a response. Half of the responses are greedy; the others are sampled with a seed."""
        sampling = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0.0}
        image = draw(sample_scene("survival", number))
        with (
            Client(base_url=self._url) as client,
            client.stream(
                "Describe the image.",
                image=image,
                max_tokens=MAX_TOKENS,
                extra_body={"ignore_eos": True, **sampling},
            ) as stream,
        ):
            for _ in stream:
                self._num_deltas[number] += 1
            return stream.text


class Site:
    """A controller and a varying number of running workers."""

    def __init__(self, url: str, start_worker: StartWorker, workers: list[WorkerProcess]) -> None:
        self.url = url
        self._start_worker = start_worker
        self._workers = workers

    def workers(self, number: int) -> list[WorkerProcess]:
        """Start or kill workers until exactly ``number`` of them are ready. Return these workers."""
        running = [worker for worker in self._workers if worker.status is None]
        for worker in running[number:]:
            worker.kill()
        started = [self._start_worker(**SETTINGS) for _ in range(number - len(running))]
        self._workers = running[:number] + started
        wait_until(lambda: all(worker.is_ready for worker in self._workers), "workers")
        return self._workers


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("survival")
    with running_redis() as url, worker_factory(url, folder) as start_worker:
        first = start_worker(**SETTINGS)
        with running_controller(url, folder, lease_s=1) as controller:
            yield Site(controller.url, start_worker, [first])


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> list[str]:
    """The texts of the eight streams when no worker is stopped."""
    texts = Streams(site.url).texts()
    assert len(set(texts)) > 1
    return texts


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_eight_streams_are_uninterrupted_when_one_of_two_workers_ends(
    site: Site, undisturbed: list[str], how: signal.Signals
) -> None:
    leaving, _ = site.workers(2)
    streams = Streams(site.url)
    wait_until(lambda: streams.num_running() == NUM_STREAMS, "eight streams to have text")
    assert streams.num_finished() < NUM_STREAMS
    leaving.send(how)
    assert streams.texts() == undisturbed
    wait_until(lambda: leaving.status is not None, "the worker to exit")
    assert leaving.status == (0 if how is signal.SIGTERM else -how)


def test_eight_streams_wait_for_a_new_worker_when_the_only_worker_is_killed(
    site: Site, undisturbed: list[str]
) -> None:
    (only,) = site.workers(1)
    streams = Streams(site.url)
    wait_until(lambda: streams.num_running() >= 6, "six streams to have text")
    only.kill()
    num_finished = streams.num_finished()
    site.workers(1)
    assert streams.texts() == undisturbed
    assert num_finished < NUM_STREAMS
