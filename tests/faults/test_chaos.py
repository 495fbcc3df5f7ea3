"""Random faults for 25 seconds.

For a longer run with different faults, set LLAVA_CHAOS_S=600 and LLAVA_CHAOS_SEED=7, for example.
"""

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
async def test_random_faults_change_no_text_and_leave_nothing_behind(cluster: Cluster) -> None:
    chaos = Chaos(cluster, SEED, DURATION_S)
    await chaos.run()
    print(f"seed {SEED}: {len(chaos.outcomes)} responses, {len(chaos.faults)} faults: {chaos.faults}")  # noqa: T201
    assert [outcome for outcome in chaos.outcomes if not outcome.is_correct] == []
    job_ids = {outcome.job_id for outcome in chaos.outcomes}
    assert len(job_ids) == len(chaos.outcomes) >= chaos.num_clients
    cluster.restore()
    states = {cluster.job_field(job_id, "state") for job_id in job_ids}
    assert states <= {"done", None}  # None: the job has expired
    cluster.assert_no_key_leaks()
    assert_no_process_has_grown(cluster)


def assert_no_process_has_grown(cluster: Cluster) -> None:
    """Check that no process has many more open files or uses much more memory than a new process."""
    processes = [*cluster.controllers, *cluster.workers]
    old = {process: psutil.Process(process.pid) for process in processes}
    num_files = {process: measured.num_fds() for process, measured in old.items()}
    memory = {process: measured.memory_info().rss for process, measured in old.items()}
    for process in processes:
        process.kill()
    cluster.restore()
    for process in processes:
        fresh = psutil.Process(process.pid)
        assert num_files[process] <= fresh.num_fds() + 16  # pooled connections
        assert memory[process] <= fresh.memory_info().rss * 1.5
