"""The load on Redis does not grow with the number of streams, and it is low while the system is idle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams
from tests.machine_speed import scaled
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

# Commands that clients send. The Redis statistics also include the commands that scripts run, which these
# tests do not count.
SENT = ("evalsha", "eval", "xread", "blpop", "ping", "info")


@pytest.fixture(scope="module")
def large_cluster() -> Iterator[Cluster]:
    with running_cluster(
        num_controllers=1,
        num_workers=1,
        worker={"max_num_sequences": 128, "echo_step_s": scaled(0.05), "lease_s": scaled(5.0)},
    ) as cluster:
        yield cluster


def num_commands(cluster: Cluster) -> int:
    stats = cluster.redis.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in SENT)


async def commands_per_step(cluster: Cluster, streams: Streams, num_streams: int) -> float:
    """Return the average number of commands in 40 steps. In each step, every stream receives a token."""
    cluster.restore()
    started = streams.start_many(cluster.urls, num_streams, max_tokens=4000)
    await async_wait_until(lambda: all(stream.num_deltas > 3 for stream in started), "the streams")
    commands, deltas = num_commands(cluster), started[0].num_deltas
    await async_wait_until(lambda: started[0].num_deltas >= deltas + 40, "40 steps")
    num_steps = started[0].num_deltas - deltas
    rate = (num_commands(cluster) - commands) / num_steps
    await streams.close()
    return rate


async def test_commands_do_not_grow_with_the_number_of_streams(
    large_cluster: Cluster, streams: Streams
) -> None:
    """The baseline of 40 streams already needs two script calls per emit."""
    few = await commands_per_step(large_cluster, streams, 40)
    many = await commands_per_step(large_cluster, streams, 128)
    assert many <= few * 1.1


async def test_an_idle_system_sends_few_commands(large_cluster: Cluster) -> None:
    """Each of the two processes sends fewer than five commands per ``reap`` interval (one second)."""
    large_cluster.restore()
    await async_wait_until(lambda: not large_cluster.key_names("live:"), "all cancellations")
    commands, reaps = num_commands(large_cluster), large_cluster.num_reaps()
    await async_wait_until(lambda: large_cluster.num_reaps() >= reaps + 4, "four reaps")
    num_reaps = large_cluster.num_reaps() - reaps
    assert num_commands(large_cluster) - commands < 2 * 5 * num_reaps
