"""Different shards in a server and a worker are reported, because some requests are not run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.conftest import Serve
from tests.server.scripted_worker import ScriptedWorker
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis


@pytest.fixture
def redis_url() -> Iterator[str]:
    """The URL of an empty Redis server, which has several databases."""
    with running_redis() as url:
        yield url


@pytest.mark.parametrize(("of_server", "of_worker"), [(1, 1), (4, 4), (4, 1), (1, 4)])
def test_readyz_warns_about_workers_with_another_number_of_shards(
    serve: Serve, queue_url: str, request: pytest.FixtureRequest, of_server: int, of_worker: int
) -> None:
    request.addfinalizer(ScriptedWorker(queue_url, num_shards=of_worker).start().stop)
    url = serve(queue_shards=of_server).url

    def status() -> Any:
        return httpx2.get(f"{url}/readyz", timeout=scaled(30)).json()

    wait_until(lambda: status().get("models"))
    warnings = status()["warnings"]
    if of_server == of_worker:
        assert warnings == []
    else:
        [warning] = warnings
        assert (
            f"1 of 1 workers have a queue of {of_worker} shards, but this server has {of_server}" in warning
        )
        assert "LLAVA_QUEUE_SHARDS" in warning


@pytest.mark.parametrize(
    ("of_server", "of_worker", "has_warning"),
    [("abc", "abc", False), ("abc", "acb", True), ("abc", "abz", True), ("aaa", "aab", True)],
)
def test_readyz_warns_about_workers_with_other_servers_or_another_order(
    serve: Serve,
    redis_url: str,
    request: pytest.FixtureRequest,
    of_server: str,
    of_worker: str,
    has_warning: bool,
) -> None:
    urls = {name: f"{redis_url}?db={database}" for database, name in enumerate("abcz")}
    worker = ScriptedWorker(redis_url, num_shards=3, queue_urls=[urls[name] for name in of_worker])
    request.addfinalizer(worker.start().stop)
    url = serve(queue_urls=" ".join(urls[name] for name in of_server), queue_shards=3).url

    def status() -> Any:
        return httpx2.get(f"{url}/readyz", timeout=scaled(30)).json()

    wait_until(lambda: status().get("models"))
    warnings = status()["warnings"]
    assert len(warnings) == has_warning
    for warning in warnings:
        assert "1 of 1 workers have other URLs of the shards than this server" in warning
        assert "LLAVA_QUEUE_URLS" in warning
        assert redis_url not in warning, "the public port does not disclose the location"
