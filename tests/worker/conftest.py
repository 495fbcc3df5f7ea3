"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.worker.asker import Asker, asking
from tests.worker.queue_server import running_queue


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def queue_url() -> Iterator[str]:
    with running_queue() as url:
        yield url


@pytest.fixture
async def asker(queue_url: str) -> AsyncIterator[Asker]:
    async with asking(queue_url) as asker:
        yield asker
