"""The whole path as processes: a queue, a controller, and workers with the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.playground.site import controller, worker
from tests.e2e.worker_process import Fleet, fleet_of
from tests.worker.queue_server import running_queue

FP32 = ("--device", "cpu", "--threads", "1", "--precision", "fp32")


@pytest.fixture
def queue_url() -> Iterator[str]:
    with running_queue() as url:
        yield url


@pytest.fixture
def fleet(queue_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_of(queue_url, tmp_path) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with one worker."""
    folder = tmp_path_factory.mktemp("tiny-server")
    with (
        running_queue() as url,
        worker(url, folder, "--model", "tiny", *FP32),
        controller(url, folder) as site,
    ):
        yield site.url
