"""Wrong clocks on a worker and on a controller change nothing, because leases use the queue's clock."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from tests.faults.cluster import running_cluster
from tests.faults.streams import Streams
from tests.waiting import async_wait_until, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SHIFTED_CLOCK = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {shift_s}
time.time_ns = lambda: _time_ns() + {shift_s} * 10**9
"""


def has_clock(log: str, shift_s: int) -> bool:
    """Return whether the first time in the log differs by ``shift_s`` from this process's clock."""
    found = re.search(r"\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d", log)
    assert found, log
    ahead = datetime.fromisoformat(found[0]) - datetime.now()
    return abs(ahead.total_seconds() - shift_s) < 600


@pytest.mark.parametrize("shift_s", [-3600, 3600])
async def test_streams_survive_a_crash_with_wrong_clocks(
    shift_s: int, streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(shift_s=shift_s), "utf-8")
    with running_cluster(num_workers=2) as cluster:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        for process in (cluster.controllers[0], cluster.workers[0]):
            process.kill()
            process.start()
        monkeypatch.delenv("PYTHONPATH")
        wait_until(lambda: cluster.controllers[0].is_ready and cluster.workers[0].is_ready, "the processes")
        for process in (cluster.controllers[0], cluster.workers[0]):
            assert has_clock(process.log, shift_s)
        assert has_clock(cluster.workers[1].log, 0)
        started = streams.start_many(cluster.urls, 8, max_tokens=200)
        await async_wait_until(lambda: all(stream.num_deltas >= 10 for stream in started), "the streams")
        cluster.workers[1].kill()
        await streams.wait_for_all()
        for stream in started:
            stream.assert_complete()
