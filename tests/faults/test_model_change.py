"""One model is exchanged for another under load: what the old one has begun it ends itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from llava_wire.redis.keys import PREFIX

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.processes import WorkerProcess
from tests.faults.streams import Streams, question
from tests.waiting import async_wait_until, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NEW = "echo-2"


@pytest.fixture
def patient_cluster() -> Iterator[Cluster]:
    """Its worker ends what it runs before it goes."""
    with running_cluster(num_controllers=1, num_workers=1, worker={"drain_timeout_s": 60}) as cluster:
        yield cluster


def num_workers(url: str, model: str) -> int:
    listed = {each["id"]: each["num_workers"] for each in httpx2.get(f"{url}/v1/models").json()["data"]}
    return int(listed.get(model, 0))


async def test_a_change_of_model_loses_no_request(
    patient_cluster: Cluster, streams: Streams, tmp_path: Path
) -> None:
    (old,), (controller,) = patient_cluster.workers, patient_cluster.controllers
    begun = [streams.ask(controller.url, question(index), max_tokens=300) for index in range(6)]
    await async_wait_until(
        lambda: all(stream.num_deltas >= 10 for stream in begun), "the old model's streams"
    )
    new = WorkerProcess(patient_cluster.back.url, tmp_path / "new.log", served_model_name=NEW)
    try:
        new.start()
        wait_until(lambda: num_workers(controller.url, NEW) == 1, "the new model")
        old.send(15)
        after = [streams.ask(controller.url, question(f"new {n}"), model=NEW) for n in range(3)]
        await streams.all_over()
        for stream in (*begun, *after):
            stream.assert_undisturbed()
        assert old.wait() == 0
        assert "handed on 0" in old.log
        crashes = [patient_cluster.redis.hget(f"{PREFIX}job:{stream.job_id}", "crashes") for stream in begun]
        assert set(crashes) == {b"0"}
        wait_until(lambda: num_workers(controller.url, "echo") == 0, "the end of the old model")
        late = streams.ask(controller.url, question("late"))
        await async_wait_until(lambda: late.is_over, "a refusal")
        assert (late.status, late.error["code"]) == (503, "no_worker")
        assert "retry-after" in late.headers
    finally:
        new.kill()
