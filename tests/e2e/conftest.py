"""Fixtures for end-to-end tests with a queue, a controller and workers in separate processes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.collector import Collector, collecting
from tests.e2e.traced_system import System
from tests.processes import StartWorker, running_site, worker_factory
from tests.wire.redis_server import running_redis

# In fp32, the bundled model generates the same tokens at every batch size.
TINY = {"model": "tiny", "device": "cpu", "threads": 1, "precision": "fp32"}


@pytest.fixture
def queue_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def start_worker(queue_url: str, tmp_path: Path) -> Iterator[StartWorker]:
    with worker_factory(queue_url, tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with one worker, shared by all tests that only send requests."""
    folder = tmp_path_factory.mktemp("tiny-server")
    with running_redis() as url, running_site(url, folder, **TINY) as site:
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
    for system in systems:
        system.stop()
