"""The timeline of a real worker that is killed in mid-sentence."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.worker_process import Fleet
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient, connect_job_client

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(queue_url: str) -> AsyncIterator[JobClient]:
    async with connect_job_client(queue_url) as client:
        yield client


def lanes_in(events: list[dict[str, Any]]) -> list[str]:
    """The sequences that began, in order."""
    return [event["name"] for event in events if event["ph"] == "b" and "args" in event]


async def test_a_killed_worker_leaves_a_timeline_and_its_successor_another(
    client: JobClient, fleet: Fleet, tmp_path: Path
) -> None:
    flags = ("--echo-step-s", "0.005", "--lease-s", "1", "--trace-steps", str(tmp_path / "trace-{pid}.json"))
    killed = fleet.start(*flags)
    jobs = [await client.submit(f"Tell {number}.", max_tokens=200, ignore_eos=True) for number in range(3)]
    await async_wait_until(lambda: all(len(client.token_ids(job)) >= 20 for job in jobs))
    killed.send(signal.SIGKILL)
    assert await killed.ended() == -signal.SIGKILL
    (left,) = tmp_path.glob("trace-*.json")

    events = json.loads(left.read_text())
    assert len(lanes_in(events)) == 3
    assert sum(event["name"] == "step" for event in events) >= 20
    assert not [event for event in events if event["ph"] == "e" and "args" in event]  # nobody ended

    fleet.start(*flags)
    for job in jobs:
        await client.wait_for_final(job)
    (second,) = set(tmp_path.glob("trace-*.json")) - {left}
    await async_wait_until(
        lambda: sum(event["name"] == "step" for event in json.loads(second.read_text())) > 0
    )
    assert json.loads(left.read_text()) == events


async def test_workers_that_share_a_file_are_refused_but_the_first(fleet: Fleet, tmp_path: Path) -> None:
    first = fleet.start("--trace-steps", str(tmp_path / "trace.json"))
    await first.ready()
    second = fleet.start("--trace-steps", str(tmp_path / "trace.json"))
    assert await second.ended() == 1
    assert "{pid}" in second.log
    assert first.status is None
