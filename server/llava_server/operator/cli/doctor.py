"""``llava-serve doctor``: check the Redis server, the clocks and the live processes."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llava_wire.errors import ImageStoreUnavailable
from llava_wire.operator.inspector import SystemStatus
from llava_wire.operator.sharded_inspector import ServerReport, ShardedInspector
from rich.console import Console
from rich.markup import escape

from llava_server.image_store_report import image_store_problems
from llava_server.operator.cli.plurals import counted
from llava_server.redis_budgets import RedisBudgets
from llava_server.settings import Settings
from llava_server.shard_report import shard_errors

__all__ = ["Finding", "check", "print_findings", "run_checks"]

_MIN_VERSIONS = {"redis": (6, 2), "valkey": (7, 2)}
_MAX_PING_S = 0.05
_MAX_CLOCK_DIFFERENCE_S = 60.0
_FULL = 0.9  # fraction of maxmemory
_MIN_MEMORY = 256 << 20
_LABELS = {"ok": "[green]ok  [/]", "warning": "[yellow]warn[/]", "error": "[red]FAIL[/]"}


@dataclass(frozen=True)
class Finding:
    """The result of one check. The level is "error" if the system cannot provide its guarantees."""

    level: Literal["ok", "warning", "error"]
    text: str


async def run_checks(
    inspector: ShardedInspector, settings: Settings, data_url: str, *, allow_eviction: bool = False
) -> list[Finding]:
    """Run all checks. ``settings`` are those of the server. ``data_url`` is the URL of the Redis server for
    data that does not belong to a job. Raises QueueUnavailable if no shard is available.
    """
    status, servers = await inspector.available_status(), await inspector.servers(data_url)
    findings = check(servers, status, settings, allow_eviction=allow_eviction)
    if settings.image_store.get_secret_value():
        findings.append(await _image_store(inspector))
    return [*findings, _gpu()]


def check(
    servers: Sequence[ServerReport], status: SystemStatus, settings: Settings, *, allow_eviction: bool = False
) -> list[Finding]:
    """Check the Redis servers and the live processes."""
    findings = []
    for server in servers:
        found = _server(server, settings, allow_eviction)
        findings += _named(server, found) if len(servers) > 1 else found
    beats = [worker.heartbeat for worker in status.workers]
    findings += [Finding("error", error) for error in shard_errors(beats, len(settings.shards))]
    image_store = settings.image_store.get_secret_value()
    findings += [Finding(*problem) for problem in image_store_problems(beats, image_store)]
    return [*findings, *_processes(status)]


def print_findings(findings: list[Finding], console: Console) -> bool:
    """Print the findings. Return False if any of them is an error."""
    for finding in findings:
        console.print(f"{_LABELS[finding.level]} {escape(finding.text)}", soft_wrap=True, highlight=False)
    return all(finding.level != "error" for finding in findings)


def _server(server: ServerReport, settings: Settings, allow_eviction: bool) -> list[Finding]:
    """Check the output of the INFO command of a Redis server."""
    info = server.info
    if info is None:
        setting = "LLAVA_QUEUE_URLS" if server.shards else "LLAVA_REDIS_URL"
        return [Finding("error", f"{server.error} Check the server and {setting}.")]
    return [
        _version(info),
        _policy(info, allow_eviction),
        _persistence(info),
        _memory(info, settings),
        _ping(info),
        _clock(info),
    ]


def _named(server: ServerReport, findings: list[Finding]) -> list[Finding]:
    """Return the findings of one of several servers, with its location and a list of its shards."""
    shards = ", ".join(map(str, server.shards))
    contents = Finding("ok", f"shards {shards}" if shards else "no shards, but all data other than jobs")
    return [Finding(each.level, f"{server.location}: {each.text}") for each in (contents, *findings)]


def _version(info: dict[str, Any]) -> Finding:
    kind = "valkey" if "valkey_version" in info else "redis"
    version = str(info[f"{kind}_version"])
    minimum = _MIN_VERSIONS[kind]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers >= minimum:
        return Finding("ok", f"{kind} {version}")
    return Finding("error", f"{kind} {version}: use {minimum[0]}.{minimum[1]} or newer")


def _policy(info: dict[str, Any], allow_eviction: bool) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return Finding("ok", "maxmemory-policy noeviction")
    level: Literal["warning", "error"] = "warning" if allow_eviction else "error"
    return Finding(level, f"maxmemory-policy {policy}: jobs may be evicted; set maxmemory-policy noeviction")


def _persistence(info: dict[str, Any]) -> Finding:
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            return Finding(
                "error", "the append-only file cannot be written; check the Redis server's log and disk"
            )
        return Finding("ok", "append-only file enabled: jobs survive a restart of the queue")
    return Finding(
        "warning",
        "append-only file disabled: only jobs with a live controller survive a restart of the queue; "
        "set appendonly yes",
    )


def _memory(info: dict[str, Any], settings: Settings) -> Finding:
    used, limit = int(info["used_memory"]), int(info.get("maxmemory") or 0)
    if not limit:
        return Finding(
            "warning", f"{used >> 20} MiB used, no limit; set maxmemory to less than the machine's memory"
        )
    if used > limit * _FULL:
        return Finding(
            "error",
            f"{used >> 20} of {limit >> 20} MiB used: new jobs will soon be rejected; increase maxmemory",
        )
    if problem := RedisBudgets.derive(settings, limit).problem(limit):
        return Finding("warning", problem)
    if limit < _MIN_MEMORY:
        return Finding(
            "warning",
            f"{used >> 20} of {limit >> 20} MiB used: maxmemory is too small for concurrent requests with "
            f"images; set it to at least {_MIN_MEMORY >> 20} MiB",
        )
    return Finding("ok", f"{used >> 20} of {limit >> 20} MiB used")


def _ping(info: dict[str, Any]) -> Finding:
    text = f"response time {info['ping_s'] * 1000:.1f} ms"
    if info["ping_s"] < _MAX_PING_S:
        return Finding("ok", text)
    return Finding(
        "warning", f"{text}: this delays every token; reduce the latency between the queue and the workers"
    )


def _clock(info: dict[str, Any]) -> Finding:
    ahead_s = info["clock_ahead_s"]
    if abs(ahead_s) < _MAX_CLOCK_DIFFERENCE_S:
        return Finding("ok", f"clocks differ by {abs(ahead_s):.1f} s")
    return Finding(
        "warning",
        f"the queue's clock differs from this machine's by {ahead_s:+.0f} s: log timestamps will not match",
    )


def _processes(status: SystemStatus) -> list[Finding]:
    findings = [
        Finding("ok", counted(len(status.workers), "worker"))
        if status.workers
        else Finding("error", "no worker is running; start one with 'llava-serve worker'"),
        Finding("ok", counted(len(status.controllers), "controller"))
        if status.controllers
        else Finding("error", "no controller is running; start one with 'llava-serve server'"),
    ]
    for worker in status.workers:
        if worker.num_tokens and worker.overdue_s:
            name, jobs = worker.heartbeat.worker_id, counted(len(worker.num_tokens), "job")
            findings.append(Finding("error", f"worker {name} is making no progress on {jobs}"))
    findings += _models(status)
    findings += _kernels(status)
    if status.num_dead_letters:
        letters = counted(status.num_dead_letters, "dead letter")
        findings.append(Finding("warning", f"{letters}; see 'llava-serve dlq show'"))
    return findings


def _models(status: SystemStatus) -> list[Finding]:
    """Return a warning for each model whose workers have different weights or settings."""
    digests: dict[str, set[str]] = {}
    for worker in status.workers:
        if worker.heartbeat.model_digest:  # empty without a model and in older releases
            digests.setdefault(worker.heartbeat.model, set()).add(worker.heartbeat.model_digest)
    return [
        Finding(
            "warning",
            f"the workers of model {model} have different weights or settings (digests {_shortened(found)}): "
            "responses depend on the worker; complete the replacement of the model, or use different names",
        )
        for model, found in sorted(digests.items())
        if len(found) > 1
    ]


def _kernels(status: SystemStatus) -> list[Finding]:
    """Return the kernels of each worker that reports them, with a warning if they are a fallback."""
    findings = []
    for worker in status.workers:
        name, kernels = worker.heartbeat.worker_id, worker.heartbeat.kernels
        if kernels is not None and kernels.fallback_reason:
            text = (
                f"worker {name} uses torch kernels, which are slower: {kernels.fallback_reason}; install a "
                "wheel with compiled kernels or a compiler on its machine, and restart it"
            )
            findings.append(Finding("warning", text))
        elif kernels is not None:
            variant = f" ({kernels.variant})" if kernels.variant else ""
            findings.append(Finding("ok", f"worker {name} uses kernels: {kernels.source}{variant}"))
    return findings


def _shortened(digests: set[str]) -> str:
    return ", ".join(sorted(digest[:10] for digest in digests))


async def _image_store(inspector: ShardedInspector) -> Finding:
    try:
        seconds = await inspector.measure_image_store()
    except ImageStoreUnavailable as error:
        return Finding("error", f"{error}; requests with images are rejected")
    return Finding("ok", f"image store: wrote, read and deleted an image in {seconds * 1000:.1f} ms")


def _gpu() -> Finding:
    if not shutil.which("nvidia-smi"):
        return Finding("ok", "no NVIDIA GPU found: workers on this machine run on the CPU")
    if importlib.util.find_spec("torch") is None:
        return Finding(
            "warning", "NVIDIA GPU found, but torch is not installed; run pip install 'llava-serve[worker]'"
        )
    return Finding("ok", "NVIDIA driver found")
