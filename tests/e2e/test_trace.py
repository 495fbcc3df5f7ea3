"""Workers write step timelines, even if they are killed while generating."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import StartWorker
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient, connect_job_client

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture
async def client(queue_url: str) -> AsyncIterator[JobClient]:
    async with connect_job_client(queue_url) as client:
        yield client


def lanes_in(events: list[dict[str, Any]]) -> list[str]:
    """Return the names of the sequences that were started, in order."""
    return [event["name"] for event in events if event["ph"] == "b" and "args" in event]


async def test_a_killed_worker_and_its_successor_each_leave_a_timeline(
    client: JobClient, start_worker: StartWorker, tmp_path: Path
) -> None:
    settings = {"echo_step_s": 0.005, "lease_s": 1, "trace_steps": tmp_path / "trace-{pid}.json"}
    killed = start_worker(**settings)
    jobs = [await client.submit(f"Write {number}.", max_tokens=200, ignore_eos=True) for number in range(3)]
    await async_wait_until(lambda: all(len(client.token_ids(job)) >= 20 for job in jobs))
    killed.send(signal.SIGKILL)
    assert await killed.async_wait() == -signal.SIGKILL
    (left,) = tmp_path.glob("trace-*.json")

    events = json.loads(left.read_text())
    assert len(lanes_in(events)) == 3
    assert sum(event["name"] == "step" for event in events) >= 20
    assert not [event for event in events if event["ph"] == "e" and "args" in event]  # no sequence finished

    start_worker(**settings)
    for job in jobs:
        await client.wait_for_final(job)
    (second,) = set(tmp_path.glob("trace-*.json")) - {left}
    await async_wait_until(
        lambda: sum(event["name"] == "step" for event in json.loads(second.read_text())) > 0
    )
    assert json.loads(left.read_text()) == events


async def test_a_second_worker_with_the_same_timeline_file_is_rejected(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    first = start_worker(trace_steps=tmp_path / "trace.json")
    await first.ready()
    second = start_worker(trace_steps=tmp_path / "trace.json")
    assert await second.async_wait() == 1
    assert "{pid}" in second.log
    assert first.status is None
