"""What the queue costs Redis: commands do not grow with the streams, and hardly any when nothing happens."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams, question
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

# What processes send; the commands inside scripts are counted beside them.
SENT = ("evalsha", "eval", "xread", "blpop", "ping", "info")


@pytest.fixture(scope="module")
def roomy_cluster() -> Iterator[Cluster]:
    with running_cluster(
        num_controllers=1,
        num_workers=1,
        worker={"max_num_sequences": 128, "echo_step_s": 0.05, "lease_s": 5.0},
    ) as cluster:
        yield cluster


def num_commands(cluster: Cluster) -> int:
    stats = cluster.redis.info("commandstats")
    assert isinstance(stats, dict)
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in SENT)


async def commands_per_second(cluster: Cluster, streams: Streams, num_streams: int) -> float:
    """Of so many streams in full flow."""
    cluster.revive()
    url = cluster.controllers[0].url
    begun = [streams.ask(url, question(number), max_tokens=4000) for number in range(num_streams)]
    await async_wait_until(lambda: all(stream.num_deltas > 3 for stream in begun), "the streams")
    began, before, num_deltas = time.monotonic(), num_commands(cluster), begun[0].num_deltas
    await async_wait_until(lambda: begun[0].num_deltas > num_deltas + 40, "40 steps")
    rate = (num_commands(cluster) - before) / (time.monotonic() - began)
    await streams.close()
    return rate


async def test_commands_do_not_grow_with_the_number_of_streams(
    roomy_cluster: Cluster, streams: Streams
) -> None:
    """But once: beyond the first of an emit's two scripts."""
    few = await commands_per_second(roomy_cluster, streams, 40)
    many = await commands_per_second(roomy_cluster, streams, 128)
    assert many <= few * 1.1


async def test_an_idle_system_is_nearly_silent(roomy_cluster: Cluster) -> None:
    roomy_cluster.revive()
    await async_wait_until(lambda: not roomy_cluster.key_names("live:"), "the end of every cancel")
    began, before = time.monotonic(), num_commands(roomy_cluster)
    await async_wait_until(lambda: time.monotonic() > began + 4, "a while")
    rate = (num_commands(roomy_cluster) - before) / (time.monotonic() - began)
    assert rate < 5 * 2  # two processes
