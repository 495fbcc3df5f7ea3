"""A model is replaced under load, and no output is continued with different weights."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from llava_wire.redis.keys import PREFIX

from tests.echo import echo_text
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Stream, Streams, story
from tests.machine_speed import scaled
from tests.processes import StartWorker, WorkerProcess, worker_factory
from tests.waiting import async_wait_until, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NEW = "echo-2"
# Changes the output of the echo model, like a checkpoint with different weights.
NEW_MODEL = {"conversation": "plain"}


@pytest.fixture
def draining_cluster() -> Iterator[Cluster]:
    """A cluster whose workers complete their running sequences before they exit."""
    with running_cluster(num_controllers=1, num_workers=2, worker={"drain_timeout_s": 600}) as cluster:
        yield cluster


@pytest.fixture
def small_cluster() -> Iterator[Cluster]:
    with running_cluster(num_controllers=1, num_workers=1) as cluster:
        yield cluster


@pytest.fixture
def start_worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts an additional worker in the test's cluster."""
    name = next(name for name in request.fixturenames if name.endswith("_cluster"))
    cluster: Cluster = request.getfixturevalue(name)
    with worker_factory(cluster.back.url, tmp_path) as start:
        yield lambda **settings: start(
            **{"lease_s": cluster.lease_s, "echo_step_s": 0.01, "drain_timeout_s": 600, **settings}
        )


def num_workers(url: str, model: str) -> int:
    models = httpx2.get(f"{url}/v1/models", timeout=scaled(30)).json()["data"]
    return sum(int(listed["num_workers"]) for listed in models if listed["id"] == model)


async def drain(worker: WorkerProcess) -> None:
    worker.send(signal.SIGTERM)
    await async_wait_until(lambda: "draining" in worker.log, "the drain")


def expected_texts(stream: Stream) -> list[str]:
    """Return the outputs of the old and the new model."""
    conversations = ("auto", NEW_MODEL["conversation"])
    return [
        echo_text(stream.prompt, max_tokens=stream.max_tokens, conversation=name) for name in conversations
    ]


async def test_a_model_change_loses_no_request(
    draining_cluster: Cluster, streams: Streams, start_worker: StartWorker
) -> None:
    cluster = draining_cluster
    (controller,) = cluster.controllers
    started = streams.start_many(cluster.urls, 6, max_tokens=300)
    await async_wait_until(lambda: all(stream.num_deltas >= 10 for stream in started), "the old model")
    start_worker(served_model_name=NEW)
    wait_until(lambda: num_workers(controller.url, NEW) == 1, "the new model")
    for old in cluster.workers:
        old.send(signal.SIGTERM)
    after = [streams.start(controller.url, story(f"new {n}"), model=NEW) for n in range(3)]
    await streams.wait_for_all()
    for stream in (*started, *after):
        stream.assert_complete()
    for old in cluster.workers:
        assert old.wait() == 0
        assert "requeued 0" in old.log
    assert {cluster.job_field(stream.job_id, "crashes") for stream in started} == {"0"}
    wait_until(lambda: num_workers(controller.url, "echo") == 0, "the end of the old model")
    late = streams.start(controller.url, story("late"))
    await async_wait_until(lambda: late.is_finished, "the rejection")
    assert (late.status, late.error["code"]) == (503, "no_worker")
    assert "retry-after" in late.headers


async def test_a_rolling_replacement_of_a_model_under_its_name_fails_no_request(
    draining_cluster: Cluster, streams: Streams, start_worker: StartWorker
) -> None:
    cluster = draining_cluster
    (controller,) = cluster.controllers
    started = streams.start_many(cluster.urls, 6, max_tokens=300)
    await async_wait_until(lambda: all(stream.num_deltas >= 10 for stream in started), "the old model")
    during = []
    for number, old in enumerate(cluster.workers):
        await start_worker(**NEW_MODEL).ready()
        await drain(old)
        during += [streams.start(controller.url, story(f"{number} {n}")) for n in range(3)]
    await streams.wait_for_all()
    wait_until(lambda: num_workers(controller.url, "echo") == 2, "the end of the old workers")
    after = [streams.start(controller.url, story(f"after {n}")) for n in range(3)]
    await streams.wait_for_all()
    for stream in (*started, *during, *after):
        assert (stream.error, stream.finish_reason) == (None, "length")
    assert [stream.text for stream in started] == [expected_texts(stream)[0] for stream in started]
    assert all(stream.text in expected_texts(stream) for stream in during)
    assert [stream.text for stream in after] == [expected_texts(stream)[1] for stream in after]
    for old in cluster.workers:
        assert (old.wait(), "requeued 0" in old.log) == (0, True)


async def test_an_output_is_continued_only_with_the_weights_that_it_was_started_with(
    small_cluster: Cluster, streams: Streams, start_worker: StartWorker
) -> None:
    cluster = small_cluster
    (controller,), (old,) = cluster.controllers, cluster.workers
    waiting = streams.start(controller.url, story("waiting"), max_tokens=200)
    await async_wait_until(lambda: waiting.num_deltas >= 10, "the old model")
    await start_worker(**NEW_MODEL).ready()
    old.kill()
    await async_wait_until(lambda: cluster.job_field(waiting.job_id, "state") == "queued", "the failover")
    other = streams.start(controller.url, story("other"))
    await async_wait_until(lambda: other.is_finished, "a request that the new model serves")
    assert other.text == expected_texts(other)[1]
    assert cluster.job_field(waiting.job_id, "state") == "queued"
    await start_worker().ready()
    await async_wait_until(lambda: waiting.is_finished, "the end of the stream")
    waiting.assert_complete()


async def test_an_output_ends_with_an_error_if_no_worker_has_its_weights_any_more(
    small_cluster: Cluster, streams: Streams, start_worker: StartWorker
) -> None:
    cluster = small_cluster
    (controller,), (old,) = cluster.controllers, cluster.workers
    headers = {"Idempotency-Key": "one-key"}
    stream = streams.start(controller.url, story("old"), max_tokens=200, headers=headers)
    await async_wait_until(lambda: stream.num_deltas >= 10, "the old model")
    await start_worker(**NEW_MODEL).ready()
    old.kill()
    await async_wait_until(lambda: cluster.job_field(stream.job_id, "state") == "queued", "the failover")
    cluster.redis.hset(f"{PREFIX}job:{stream.job_id}", "queued_at", "0")  # as if the time limit had passed
    await async_wait_until(lambda: stream.is_finished, "the error")
    assert stream.error["code"] == "model_changed"
    assert expected_texts(stream)[0].startswith(stream.text)
    again = streams.start(controller.url, story("old"), max_tokens=200, headers=headers)
    await streams.wait_for_all()
    assert (again.error, again.text) == (None, expected_texts(again)[1])
    assert cluster.is_idle
    cluster.assert_no_key_leaks()
