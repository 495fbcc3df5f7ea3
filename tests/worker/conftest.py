"""Fixtures for the worker's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.wire.redis_server import running_redis
from tests.worker.job_client import JobClient, connect_job_client


@pytest.fixture
def queue_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
async def client(queue_url: str) -> AsyncIterator[JobClient]:
    async with connect_job_client(queue_url) as client:
        yield client


@pytest.fixture
def short_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten pulls from 1 second to 50 ms, because draining waits for the pull in progress."""
    monkeypatch.setattr("llava_wire.worker_side.consumer.WAIT_S", 0.05)
