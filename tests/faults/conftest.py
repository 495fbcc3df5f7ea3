"""Fixtures for the fault tests. The shared cluster is idle before each test, and no test may leak keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams, open_streams


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    shared_cluster.restore()
    yield shared_cluster
    shared_cluster.assert_no_key_leaks()


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    async with open_streams() as streams:
        yield streams
