"""Is everything as it should be? Each finding says what was found and what to do about it."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any, Literal

from llava_wire.operator.inspector import Inspector, SystemStatus
from rich.console import Console
from rich.markup import escape

__all__ = ["Finding", "examine", "judge", "report"]

_OLDEST = {"redis": (6, 2), "valkey": (7, 2)}
_SLOW_PING_S = 0.05
_CLOCK_S = 60.0
_FULL = 0.9  # share of maxmemory
_MARKS = {"good": "[green]ok  [/]", "doubt": "[yellow]hint[/]", "bad": "[red]BAD [/]"}


@dataclass(frozen=True)
class Finding:
    """``kind`` "bad" means that promises do not hold; "doubt" that somebody should know."""

    kind: Literal["good", "doubt", "bad"]
    text: str


async def examine(inspector: Inspector) -> list[Finding]:
    """Raises QueueUnavailable."""
    return judge(await inspector.server_info(), await inspector.status()) + [_gpu()]


def judge(facts: dict[str, Any], fleet: SystemStatus) -> list[Finding]:
    """What the numbers mean."""
    return [
        _version(facts),
        _policy(facts),
        _persistence(facts),
        _memory(facts),
        _ping(facts),
        _clock(facts),
        *_fleet(fleet),
    ]


def report(findings: list[Finding], console: Console) -> bool:
    """Prints them; False if one is bad."""
    for finding in findings:
        console.print(f"{_MARKS[finding.kind]} {escape(finding.text)}", soft_wrap=True, highlight=False)
    return all(finding.kind != "bad" for finding in findings)


def _version(facts: dict[str, Any]) -> Finding:
    kind = "valkey" if "valkey_version" in facts else "redis"
    version = str(facts[f"{kind}_version"])
    oldest = _OLDEST[kind]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers >= oldest:
        return Finding("good", f"{kind} {version}")
    return Finding("bad", f"{kind} {version}: use {oldest[0]}.{oldest[1]} or newer")


def _policy(facts: dict[str, Any]) -> Finding:
    policy = facts.get("maxmemory_policy")
    if policy == "noeviction":
        return Finding("good", "maxmemory-policy noeviction")
    return Finding("bad", f"maxmemory-policy {policy}: jobs may be evicted; set maxmemory-policy noeviction")


def _persistence(facts: dict[str, Any]) -> Finding:
    if facts.get("aof_enabled"):
        if facts.get("aof_last_write_status", "ok") != "ok":
            return Finding("bad", "the append-only file cannot be written: look at the server's log and disk")
        return Finding("good", "append-only file on: jobs survive a restart of the queue")
    return Finding(
        "doubt",
        "append-only file off: jobs with a live controller survive a restart of the queue, others do not; "
        "set appendonly yes",
    )


def _memory(facts: dict[str, Any]) -> Finding:
    used, most = int(facts["used_memory"]), int(facts.get("maxmemory") or 0)
    if not most:
        return Finding("doubt", f"{used >> 20} MiB used, no maxmemory: set one below what the machine has")
    if used > most * _FULL:
        return Finding(
            "bad", f"{used >> 20} of {most >> 20} MiB used: soon nothing is taken; raise maxmemory"
        )
    return Finding("good", f"{used >> 20} of {most >> 20} MiB used")


def _ping(facts: dict[str, Any]) -> Finding:
    text = f"answers in {facts['ping_s'] * 1000:.1f} ms"
    if facts["ping_s"] < _SLOW_PING_S:
        return Finding("good", text)
    return Finding("doubt", f"{text}: every token passes here; bring the queue nearer to the workers")


def _clock(facts: dict[str, Any]) -> Finding:
    ahead_s = facts["clock_ahead_s"]
    if abs(ahead_s) < _CLOCK_S:
        return Finding("good", f"clocks differ by {abs(ahead_s):.1f} s")
    return Finding(
        "doubt", f"the queue's clock is {ahead_s:+.0f} s from this one: nothing breaks, logs will not line up"
    )


def _fleet(fleet: SystemStatus) -> list[Finding]:
    found = [
        Finding("good", f"{len(fleet.workers)} workers")
        if fleet.workers
        else Finding("bad", "no worker: start one with 'llava-serve worker'"),
        Finding("good", f"{len(fleet.controllers)} controllers")
        if fleet.controllers
        else Finding("bad", "no controller: start one with 'llava-serve server'"),
    ]
    for worker in fleet.workers:
        if worker.num_tokens and worker.overdue_s:
            name = worker.heartbeat.worker_id
            found.append(
                Finding("bad", f"worker {name} makes no progress with {len(worker.num_tokens)} jobs")
            )
    if fleet.num_dead_letters:
        found.append(Finding("doubt", f"{fleet.num_dead_letters} dead letters: see 'llava-serve dlq show'"))
    return found


def _gpu() -> Finding:
    if not shutil.which("nvidia-smi"):
        return Finding("good", "no NVIDIA GPU on this machine: workers here run on the CPU")
    if importlib.util.find_spec("torch") is None:
        return Finding(
            "doubt", "there is an NVIDIA GPU, but no torch here: pip install 'llava-serve[worker]'"
        )
    return Finding("good", "NVIDIA driver found")
