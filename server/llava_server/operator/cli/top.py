"""``llava-serve top``: a live view of workers, queues and streams, refreshed every second."""

from __future__ import annotations

import asyncio
import time

from llava_wire.operator.inspector import SystemStatus
from llava_wire.operator.sharded_inspector import ShardedInspector
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from llava_server.operator.cli.plurals import counted

__all__ = ["TokenRates", "render", "watch"]

_REFRESH_S = 1.0
_MAX_STREAMS = 20
_TOKENS_STAT = "num_generated_tokens_total"


class TokenRates:
    """The tokens per second that each worker generated between the last two updates."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}  # worker -> time, total tokens
        self.per_s: dict[str, float] = {}

    def update(self, status: SystemStatus, now: float) -> None:
        """Compute the rates since the last update. ``now`` is a monotonic time, in seconds."""
        for worker in status.workers:
            name, tokens = worker.heartbeat.worker_id, worker.heartbeat.stats.get(_TOKENS_STAT, 0.0)
            last_time, last_tokens = self._last.get(name, (now, tokens))
            if now > last_time:
                self.per_s[name] = max(tokens - last_tokens, 0.0) / (now - last_time)
            self._last[name] = now, tokens


async def watch(inspector: ShardedInspector, console: Console, *, is_once: bool) -> None:
    """Show the screen until cancelled, or print it once. Raises QueueUnavailable."""
    rates = TokenRates()
    status = await inspector.status()
    if is_once:
        console.print(render(status, rates), soft_wrap=not console.is_terminal)
        return
    with Live(render(status, rates), console=console, screen=True, auto_refresh=False) as live:
        while True:
            rates.update(status, time.monotonic())
            live.update(render(status, rates), refresh=True)
            await asyncio.sleep(_REFRESH_S)
            status = await inspector.status()


def render(status: SystemStatus, rates: TokenRates) -> Group:
    """Return the contents of the whole screen."""
    return Group(_workers(status, rates), _queues(status), _streams(status))


def _workers(status: SystemStatus, rates: TokenRates) -> Table:
    title = f"{counted(len(status.workers), 'worker')}, {counted(len(status.controllers), 'controller')}"
    if status.num_dead_letters:
        title += f", {counted(status.num_dead_letters, 'dead letter')}"
    table = Table("worker", "model", "device", "streams", "tokens/s", "state", title=title, expand=True)
    for worker in status.workers:
        beat = worker.heartbeat
        state = "draining" if beat.is_draining else "running" if worker.num_tokens else "idle"
        if not beat.model:
            state = "no model"
        elif worker.num_tokens and worker.overdue_s:
            state = f"no progress, {worker.overdue_s:.0f} s overdue"
        rate = f"{rates.per_s[beat.worker_id]:.0f}" if beat.worker_id in rates.per_s else "-"
        streams = f"{len(worker.num_tokens)}/{beat.capacity}"
        table.add_row(escape(beat.worker_id), escape(beat.model), escape(beat.device), streams, rate, state)
    return table


def _queues(status: SystemStatus) -> Table:
    table = Table("queue", "high", "normal", "low", "quarantined", "tokens", expand=True)
    for model, depth in status.queues.items():
        numbers = (depth.num_high, depth.num_normal, depth.num_low, depth.num_quarantined, depth.cost)
        table.add_row(escape(model), *map(str, numbers))
    return table


def _streams(status: SystemStatus) -> Table:
    streams = [
        (job_id, worker.heartbeat.worker_id, number)
        for worker in status.workers
        for job_id, number in worker.num_tokens.items()
    ]
    more = len(streams) - _MAX_STREAMS
    table = Table("stream", "worker", "tokens", caption=f"and {more} more" if more > 0 else None, expand=True)
    for job_id, worker_id, number in sorted(streams, key=lambda row: -row[2])[:_MAX_STREAMS]:
        table.add_row(escape(job_id), escape(worker_id), str(number))
    return table
