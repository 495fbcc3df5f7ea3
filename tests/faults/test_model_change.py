"""A model is replaced under load, while the old worker completes its in-flight requests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams, story
from tests.machine_speed import scaled
from tests.processes import WorkerProcess
from tests.waiting import async_wait_until, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NEW = "echo-2"


@pytest.fixture
def draining_cluster() -> Iterator[Cluster]:
    """A cluster whose worker completes its running sequences before it exits."""
    with running_cluster(num_controllers=1, num_workers=1, worker={"drain_timeout_s": 600}) as cluster:
        yield cluster


def num_workers(url: str, model: str) -> int:
    models = httpx2.get(f"{url}/v1/models", timeout=scaled(30)).json()["data"]
    return sum(int(listed["num_workers"]) for listed in models if listed["id"] == model)


async def test_a_model_change_loses_no_request(
    draining_cluster: Cluster, streams: Streams, tmp_path: Path
) -> None:
    cluster = draining_cluster
    (old,), (controller,) = cluster.workers, cluster.controllers
    started = streams.start_many(cluster.urls, 6, max_tokens=300)
    await async_wait_until(lambda: all(stream.num_deltas >= 10 for stream in started), "the old model")
    new = WorkerProcess(cluster.back.url, tmp_path / "new.log", served_model_name=NEW)
    try:
        new.start()
        wait_until(lambda: num_workers(controller.url, NEW) == 1, "the new model")
        old.send(signal.SIGTERM)
        after = [streams.start(controller.url, story(f"new {n}"), model=NEW) for n in range(3)]
        await streams.wait_for_all()
        for stream in (*started, *after):
            stream.assert_complete()
        assert old.wait() == 0
        assert "requeued 0" in old.log
        assert {cluster.job_field(stream.job_id, "crashes") for stream in started} == {"0"}
        wait_until(lambda: num_workers(controller.url, "echo") == 0, "the end of the old model")
        late = streams.start(controller.url, story("late"))
        await async_wait_until(lambda: late.is_finished, "the rejection")
        assert (late.status, late.error["code"]) == (503, "no_worker")
        assert "retry-after" in late.headers
    finally:
        new.kill()
