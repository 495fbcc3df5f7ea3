"""The whole path as processes: a queue, a controller, and workers with the bundled model."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.collector import Collector, collecting
from tests.e2e.playground.site import controller, worker
from tests.e2e.traced_system import System
from tests.e2e.worker_process import Fleet, fleet_of
from tests.wire.redis_server import running_redis

FP32 = ("--device", "cpu", "--threads", "1", "--precision", "fp32")


@pytest.fixture
def queue_url() -> Iterator[str]:
    with running_redis() as url:
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
        running_redis() as url,
        worker(url, folder, "--model", "tiny", *FP32),
        controller(url, folder) as site,
    ):
        yield site.url


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector, pytest.MonkeyPatch.context() as variables:
        variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        variables.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # ms
        yield collector


@pytest.fixture
def trace() -> str:
    return secrets.token_hex(16)


@pytest.fixture
def system(collector: Collector, queue_url: str, tmp_path: Path) -> Iterator[Callable[..., System]]:
    systems: list[System] = []

    def start(*, otel: bool = True) -> System:
        systems.append(System(queue_url, tmp_path, otel=otel))
        return systems[-1]

    yield start
    for each in systems:
        each.stop()
