"""Engine metrics: /metrics exports the statistics of live workers only."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TypeAlias

import httpx2
import pytest
from llava_server import engine_metrics
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.worker_side.consumer import STEP_STAT, JobConsumer
from llava_worker.engine import EngineStats
from llava_worker.open_model import StartupTimes
from prometheus_client.parser import text_string_to_metric_families

from tests.machine_speed import scaled
from tests.processes import StartWorker, worker_factory
from tests.server.conftest import Serve, Server, Valkey
from tests.server.scripted_worker import SPEC
from tests.waiting import wait_until

Series: TypeAlias = dict[tuple[str, str], float]  # (name, worker) -> value


def scrape(server: Server) -> Series:
    """Return the engine series, except those with a phase or part label."""
    text = httpx2.get(f"{server.url}/metrics", timeout=scaled(30)).text
    return {
        (sample.name.removeprefix("llava_engine_"), sample.labels.get("worker", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("llava_engine_") and sample.labels.keys() <= {"model_name", "worker"}
    }


def workers_in(series: Series) -> set[str]:
    return {worker for _, worker in series if worker}


def announce(url: str, *names: str, **stats: float) -> None:
    """Register workers. Each sends a single heartbeat, which is valid for a minute."""

    async def announce_all() -> None:
        for started_at, name in enumerate(names):
            heartbeat = Heartbeat(
                worker_id=name,
                model="m",
                image_spec=SPEC,
                context_length=64,
                capacity=1,
                device="none",
                precision="fp32",
                started_at=float(started_at),
                stats=stats,
            )
            consumer = await JobConsumer.connect(url, heartbeat, lease_s=60)
            await consumer.aclose()

    asyncio.run(announce_all())


def total(name: str, series: Series) -> float:
    return sum(value for (found, _), value in series.items() if found == name)


@pytest.fixture
def start_worker(queue_url: str, tmp_path: Path) -> Iterator[StartWorker]:
    with worker_factory(queue_url, tmp_path) as start:
        yield start


def ask(server: Server) -> int:
    """Send a chat request and return the number of generated tokens."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hi?"}], "max_tokens": 5}
    response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=scaled(30))
    return int(response.json()["usage"]["completion_tokens"])


def test_each_worker_has_its_own_series_until_it_exits(serve: Serve, start_worker: StartWorker) -> None:
    killed, stopped = start_worker(lease_s=1), start_worker(lease_s=1)
    server = serve(lease_s=1.0)
    wait_until(lambda: len(workers_in(scrape(server))) == 2)

    num_tokens = sum(ask(server) for _ in range(3))
    wait_until(lambda: total("generated_tokens_total", scrape(server)) == num_tokens == 15)
    assert total("steps_total", scrape(server)) == 15

    killed.kill()
    wait_until(lambda: len(workers_in(scrape(server))) == 1)
    stopped.send(signal.SIGTERM)
    wait_until(lambda: not workers_in(scrape(server)))


def test_unknown_statistics_of_another_version_are_ignored(serve: Serve, queue_url: str) -> None:
    announce(queue_url, "newer", num_steps_total=3, num_wonders_total=9)
    series = scrape(serve())
    assert {name: value for (name, worker), value in series.items() if worker} == {"steps_total": 3}


def test_a_worker_that_sends_no_statistics_has_no_series(serve: Serve, queue_url: str) -> None:
    announce(queue_url, "older")
    server = serve()
    assert not workers_in(scrape(server))
    assert server.metric("llava_num_workers", model_name="m") == 1


def test_workers_above_the_limit_are_counted_but_have_no_series(
    serve: Serve, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_metrics, "MAX_WORKERS", 2)
    announce(queue_url, "a", "b", "c", num_steps_total=1)
    series = scrape(serve())
    assert workers_in(series) == {"a", "b"}
    assert series["workers_hidden", ""] == 1


def test_stale_statistics_are_not_exported(valkey: Valkey, serve: Serve) -> None:
    url = f"unix://{valkey.socket}"
    announce(url, "a", num_steps_total=1)
    server = serve(redis_url=url)
    assert workers_in(scrape(server)) == {"a"}
    valkey.kill()
    wait_until(lambda: not workers_in(scrape(server)))


def test_every_statistic_of_the_engine_has_a_metric() -> None:
    tables = [*engine_metrics.GAUGES, *engine_metrics.COUNTERS, *engine_metrics.PHASES]
    assert sorted(tables) == sorted([*(stat.name for stat in fields(EngineStats)), STEP_STAT])
    assert [*engine_metrics.STARTS] == [f"start_{part.name}" for part in fields(StartupTimes)]


def test_every_metric_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)", row)}
    gauges = {name for name, _ in engine_metrics.GAUGES.values()}
    counters = {f"{name}_total" for name, _ in engine_metrics.COUNTERS.values()}
    others = {"phase_seconds_total", "start_seconds", "kernels", "workers_hidden"}
    assert gauges | counters | others <= documented
