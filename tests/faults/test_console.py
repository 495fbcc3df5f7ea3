"""Operator commands on a running system."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from llava_server.operator.cli.doctor import Finding, check
from llava_server.settings import Settings
from llava_wire.image_stores.location import image_store_digest
from llava_wire.messages.heartbeat import KernelInfo
from llava_wire.messages.job import Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_wire.operator.inspector import SystemStatus, WorkerStatus
from llava_wire.operator.sharded_inspector import ServerReport
from llava_wire.redis.address import parse_redis_url
from llava_wire.redis.keys import PREFIX
from llava_wire.redis.shards import queue_shards, shard_servers_digest
from pydantic import SecretStr

from tests.echo import echo_text
from tests.faults.cluster import Cluster
from tests.faults.streams import Streams, story
from tests.machine_speed import scaled
from tests.waiting import async_wait_until
from tests.wire.harness import heartbeat
from tests.wire.redis_server import running_redis

pytestmark = pytest.mark.e2e

GOOD = {
    "redis_version": "7.2.4",
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "used_memory": 1 << 20,
    "maxmemory": 1 << 30,
    "ping_s": 0.001,
    "clock_ahead_s": 0.1,
}
NO_WORKERS = SystemStatus((), {"c": 0.1}, {}, 0)
SETTINGS = Settings()


def server(info: dict[str, Any]) -> ServerReport:
    return ServerReport("queue:6379/0", (0,), info)


def run(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    program = "from llava_cli import main; main()"
    command = [sys.executable, "-c", program, *words, "--redis-url", cluster.queue.url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=scaled(60))


def add_dead_letter(cluster: Cluster, job_id: str, job: Job | None) -> None:
    """Add a dead letter in the same format as ``reap_workers``."""
    fields: dict[Any, Any] = {
        "job": job_id,
        "tenant": "t",
        "model": "echo",
        "worker": "w",
        "crashes": 3,
        "tokens": 12,
        "reason": "worker lease expired",
        "payload": msgspec.msgpack.encode(job) if job else b"",
    }
    cluster.redis.xadd(f"{PREFIX}dlq", fields)


@pytest.mark.anyio
async def test_top_shows_workers_and_streams(cluster: Cluster, streams: Streams) -> None:
    stream = streams.start(cluster.controllers[0].url, story(1), max_tokens=4000)
    await async_wait_until(lambda: stream.num_deltas > 3, "the stream")
    shown = run(cluster, "top", "--once")
    assert shown.returncode == 0, shown.stderr
    assert "3 workers, 2 controllers" in shown.stdout
    assert stream.job_id in shown.stdout


def test_doctor_passes_on_a_healthy_system(cluster: Cluster) -> None:
    found = run(cluster, "doctor")
    assert found.returncode == 0, found.stdout
    assert "append-only file enabled" in found.stdout
    assert "FAIL" not in found.stdout


def test_doctor_reports_an_eviction_policy(cluster: Cluster) -> None:
    cluster.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = run(cluster, "doctor")
    finally:
        cluster.redis.config_set("maxmemory-policy", "noeviction")
    assert found.returncode == 1
    assert "set maxmemory-policy noeviction" in found.stdout


@pytest.mark.parametrize(
    ("info", "level", "text"),
    [
        ({"redis_version": "6.0.1"}, "error", "use 6.2 or newer"),
        ({"valkey_version": "7.0.0"}, "error", "use 7.2 or newer"),
        ({"aof_enabled": 0}, "warning", "set appendonly yes"),
        ({"aof_last_write_status": "err"}, "error", "cannot be written"),
        ({"maxmemory": 0}, "warning", "set maxmemory"),
        ({"used_memory": 1 << 30}, "error", "increase maxmemory"),
        ({"maxmemory": 128 << 20, "used_memory": 1 << 20}, "warning", "at least 256 MiB"),
        ({"ping_s": 0.2}, "warning", "200.0 ms"),
        ({"clock_ahead_s": -300.0}, "warning", "-300 s"),
    ],
)
def test_doctor_reports_each_problem(info: dict[str, Any], level: str, text: str) -> None:
    usual = {finding.text for finding in check([server(GOOD)], NO_WORKERS, SETTINGS)}
    found_all = check([server(GOOD | info)], NO_WORKERS, SETTINGS)
    (found,) = [finding for finding in found_all if finding.text not in usual]
    assert found.level == level
    assert text in found.text


def test_doctor_reports_budgets_that_exceed_the_memory_of_redis() -> None:
    found = check([server(GOOD)], NO_WORKERS, Settings(max_all_files_mb=600))
    assert any(each.level == "warning" and "LLAVA_MAX_ALL_FILES_MB" in each.text for each in found)


def test_doctor_reports_workers_of_one_model_with_different_digests() -> None:
    def texts(*models: tuple[str, str]) -> list[str]:
        workers = tuple(WorkerStatus(heartbeat(f"w{n}", *model), {}, 0.0) for n, model in enumerate(models))
        findings = check([server(GOOD)], SystemStatus(workers, {"c": 0.1}, {}, 0), SETTINGS)
        return [finding.text for finding in findings if finding.level == "warning"]

    assert texts(("m", "a"), ("m", "a"), ("n", "b"), ("m", ""), ("", "")) == []
    (text,) = texts(("m", "a" * 32), ("m", "b" * 32), ("n", "c" * 32))
    assert (
        "the workers of model m have different weights or settings (digests aaaaaaaaaa, bbbbbbbbbb)" in text
    )


def test_doctor_reports_the_kernels_of_each_worker() -> None:
    def findings(kernels: KernelInfo | None) -> list[Finding]:
        beat = msgspec.structs.replace(heartbeat("w1"), kernels=kernels)
        found = check(
            [server(GOOD)], SystemStatus((WorkerStatus(beat, {}, 0.0),), {"c": 0.1}, {}, 0), SETTINGS
        )
        return [finding for finding in found if "kernels" in finding.text]

    assert findings(None) == []
    shipped = KernelInfo(source="shipped", variant="avx2")
    assert findings(shipped) == [Finding("ok", "worker w1 uses kernels: shipped (avx2)")]
    (found,) = findings(KernelInfo(source="torch", fallback_reason="compiler g++ not found"))
    assert found.level == "warning"
    assert "worker w1 uses torch kernels, which are slower: compiler g++ not found" in found.text


def test_a_dead_letter_is_shown_and_can_be_replayed(cluster: Cluster) -> None:
    job = Job(
        job_id="chatcmpl-dead",
        model="echo",
        tenant="t",
        messages=(Message("user", (story(1),)),),
        sampling=SamplingParams(seed=1, temperature=0.0, max_tokens=30, ignore_eos=True),
        cost=30.0,
    )
    add_dead_letter(cluster, job.job_id, job)
    add_dead_letter(cluster, "chatcmpl-large", None)
    shown = run(cluster, "dlq", "show").stdout
    crashes = "3 crashes, the last at token 12: worker lease expired"
    assert f"chatcmpl-dead  model=echo tenant=t: {crashes}\n" in shown
    replayed = run(cluster, "dlq", "replay", job.job_id)
    assert (replayed.returncode, replayed.stdout) == (0, echo_text(story(1), max_tokens=30) + "\n")
    assert "too large to store" in run(cluster, "dlq", "replay", "chatcmpl-large").stderr
    unknown = run(cluster, "dlq", "replay", "chatcmpl-unknown")
    assert (unknown.returncode, "No dead letter has this job ID" in unknown.stderr) == (1, True)


@pytest.mark.parametrize("words", [["top", "--once"], ["doctor"], ["dlq", "show"]], ids=" ".join)
@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("unix:///nowhere/s", 69, "Check --redis-url."),
        ("http://:secret@x", 2, "--redis-url: the scheme is missing or not supported"),
    ],
    ids=["unavailable", "unsupported scheme"],
)
def test_every_command_reports_an_unusable_redis(
    words: list[str], url: str, status: int, message: str
) -> None:
    command = [sys.executable, "-m", "llava_server.operator.cli", *words, "--redis-url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=scaled(60))
    assert done.returncode == status
    assert message in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("num_shards", "is_error"), [(1, False), (4, True)])
def test_doctor_fails_if_a_worker_has_another_number_of_shards(num_shards: int, is_error: bool) -> None:
    beat = msgspec.structs.replace(heartbeat("w"), num_shards=num_shards)
    found = check([server(GOOD)], SystemStatus((WorkerStatus(beat, {}, 0.0),), {"c": 0.1}, {}, 0), SETTINGS)
    assert any(each.level == "error" and "LLAVA_QUEUE_SHARDS" in each.text for each in found) == is_error


@pytest.mark.parametrize(
    ("of_worker", "is_reported"),
    [
        ("redis://worker:other@a redis://b:6379/0", False),
        ("redis://b redis://a", True),
        (None, False),  # an older release, which does not report its servers
    ],
)
def test_doctor_reports_workers_with_another_order_of_the_shards(
    of_worker: str | None, is_reported: bool
) -> None:
    settings = Settings(queue_urls=SecretStr("redis://server:secret@a redis://b"))
    digest = None if of_worker is None else shard_servers_digest(queue_shards(of_worker.split(), 2))
    beat = msgspec.structs.replace(heartbeat("w"), num_shards=2, shard_servers=digest)
    status = SystemStatus((WorkerStatus(beat, {}, 0.0),), {"c": 0.1}, {}, 0)
    found = [each for each in check([server(GOOD)], status, settings) if "LLAVA_QUEUE_URLS" in each.text]
    assert [each.level for each in found] == ["warning"] * is_reported
    assert not any("secret" in each.text for each in found)


@pytest.mark.parametrize(
    ("of_server", "of_worker", "level"),
    [
        ("", "", None),
        ("redis://server:secret@images", "redis://worker:other@images:6379/0", None),
        ("redis://images", "", "error"),
        ("redis://images", "redis://images/1", "warning"),
        ("", "redis://images", "warning"),
        ("redis://images", None, None),  # an older release, which does not report its store
    ],
)
def test_doctor_reports_workers_with_another_image_store(
    of_server: str, of_worker: str | None, level: str | None
) -> None:
    digest = None if of_worker is None else image_store_digest(of_worker)
    beat = msgspec.structs.replace(heartbeat("w"), image_store=digest)
    status = SystemStatus((WorkerStatus(beat, {}, 0.0),), {"c": 0.1}, {}, 0)
    settings = Settings(image_store=SecretStr(of_server))
    found = [each for each in check([server(GOOD)], status, settings) if "LLAVA_IMAGE_STORE" in each.text]
    assert [each.level for each in found] == ([level] if level else [])
    assert not any("secret" in each.text or "images:" in each.text for each in found)


def run_doctor(*queue_urls: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LLAVA_QUEUE_URLS": " ".join(queue_urls), **variables}
    command = [sys.executable, "-m", "llava_server.operator.cli", "doctor"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=scaled(60)
    )


def test_doctor_reports_each_server_of_the_queue_and_which_one_is_unavailable() -> None:
    nowhere = "unix://server:secret@/nowhere/s"
    with running_redis() as first, running_redis() as second, running_redis() as data:
        healthy = run_doctor(first, second, LLAVA_REDIS_URL=data, LLAVA_QUEUE_SHARDS="3")
        broken = run_doctor(first, nowhere, LLAVA_REDIS_URL=data)
        locations = [parse_redis_url(url).location for url in (data, first, second)]
    for location, contents in zip(locations, ("no shards", "shards 0, 2", "shards 1"), strict=True):
        assert f"{location}: {contents}" in healthy.stdout, healthy.stdout
        assert f"{location}: append-only file" in healthy.stdout
    assert f"{locations[1]}: shards 0" in broken.stdout
    [line] = [each for each in broken.stdout.splitlines() if "FAIL unix:///nowhere/s?db=0" in each]
    assert "Check the server and LLAVA_QUEUE_URLS." in line
    assert "unix:///nowhere/s?db=0: shards 1: " in line
    assert broken.stdout.count("unix:///nowhere/s?db=0: ") == 1, (
        "no check of an unavailable server is reported as ok"
    )
    assert "--redis-url" not in broken.stdout + broken.stderr
    assert "secret" not in broken.stdout + broken.stderr


def test_doctor_names_the_setting_of_the_queue_if_no_server_is_available() -> None:
    done = run_doctor("unix:///nowhere/s", "unix:///nowhere/t")
    assert (done.returncode, "Check LLAVA_QUEUE_URLS." in done.stderr) == (69, True), done.stderr
