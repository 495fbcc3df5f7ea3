"""Clients that leave, stand still, or lose their controller."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.faults.cluster import Cluster
from tests.faults.streams import Streams, question, until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


async def test_a_client_that_leaves_frees_its_place(cluster: Cluster, streams: Streams) -> None:
    stream = streams.ask(cluster.controllers[0].url, question(1), max_tokens=4000)
    await until(lambda: stream.num_deltas >= 5, "the stream")
    assert stream.task
    stream.task.cancel()
    await until(lambda: cluster.state(stream.job_id) == "cancelled", "the cancel")
    await until(lambda: cluster.is_idle, "a free place")
    left = {key for key in cluster.key_names() if stream.job_id in key}
    assert {key.rpartition("}:")[2].partition(":")[0] for key in left} <= {"job", "log"}


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_a_client_that_leaves_while_it_asks_is_never_stuck(
    cluster: Cluster, streams: Streams, num_steps: int
) -> None:
    stream = streams.ask(cluster.controllers[0].url, question(num_steps), max_tokens=4000)
    for _ in range(num_steps):
        await asyncio.sleep(0)
    assert stream.task
    stream.task.cancel()
    await asyncio.gather(stream.task, return_exceptions=True)
    await until(lambda: cluster.is_idle and not cluster.key_names("live:"), "an idle system")


async def test_a_controller_told_to_leave_finishes_its_streams(cluster: Cluster, streams: Streams) -> None:
    leaving, staying = cluster.controllers
    begun = [streams.ask(leaving.url, question(index)) for index in range(8)]
    await until(lambda: all(stream.num_deltas >= 5 for stream in begun), "the streams")
    leaving.send(signal.SIGTERM)
    refused = streams.ask(leaving.url, question("late"))
    await until(lambda: refused.is_over, "a refusal")
    assert refused.status == 503
    assert refused.error["code"] == "shutting_down"
    instead = streams.ask(staying.url, question("late"))
    await streams.all_over()
    for stream in (*begun, instead):
        stream.assert_undisturbed()
    assert leaving.wait() == 0
