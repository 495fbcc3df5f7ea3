"""Half a minute of chaos; ``LLAVA_CHAOS_S=600 LLAVA_CHAOS_SEED=7 pytest tests/faults -k chaos`` for more."""

from __future__ import annotations

import os

import psutil
import pytest

from tests.faults.chaos import Chaos
from tests.faults.cluster import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

DURATION_S = float(os.environ.get("LLAVA_CHAOS_S") or 25)
SEED = int(os.environ.get("LLAVA_CHAOS_SEED") or 1)


@pytest.mark.timeout(180 + DURATION_S)
async def test_chaos_changes_no_text_and_leaves_nothing_behind(cluster: Cluster) -> None:
    chaos = Chaos(cluster, SEED, DURATION_S)
    await chaos.run()
    print(f"seed {SEED}: {len(chaos.told)} answers, {len(chaos.struck)} faults: {chaos.struck}")  # noqa: T201
    wrong = [told for told in chaos.told if not told.is_right]
    assert not wrong
    assert len({told.job_id for told in chaos.told}) == len(chaos.told) >= chaos.num_clients
    cluster.revive()
    states = {cluster.state(told.job_id) for told in chaos.told}
    assert states <= {"done", None}  # None: its minutes are over
    cluster.assert_no_key_leaks()
    await assert_small_again(cluster)


async def assert_small_again(cluster: Cluster) -> None:
    """As many open files and as much memory as processes that have just been started."""
    processes = [*cluster.controllers, *cluster.workers]
    aged = {each: psutil.Process(each.pid) for each in processes}
    files = {each: process.num_fds() for each, process in aged.items()}
    memory = {each: process.memory_info().rss for each, process in aged.items()}
    for each in processes:
        each.kill()
    cluster.revive()
    for each in processes:
        fresh = psutil.Process(each.pid)
        assert files[each] <= fresh.num_fds() + 16  # connections that wait for their next use
        assert memory[each] <= fresh.memory_info().rss * 1.5
