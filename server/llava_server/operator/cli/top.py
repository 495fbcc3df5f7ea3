"""Workers, streams and queues on one screen, a second old at most."""

from __future__ import annotations

import asyncio
import time

from llava_wire.operator.inspector import Inspector, SystemStatus
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

__all__ = ["Rates", "draw", "watch"]

_REFRESH_S = 1.0
_NUM_STREAMS = 20  # shown
_TOKENS = "num_generated_tokens_total"


class Rates:
    """Tokens a second by worker, from one look to the next."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # worker -> when, tokens by then
        self.per_s: dict[str, float] = {}

    def look(self, fleet: SystemStatus, now: float) -> None:
        """``now`` is any clock that only goes forward."""
        for worker in fleet.workers:
            name, tokens = worker.heartbeat.worker_id, worker.heartbeat.stats.get(_TOKENS, 0.0)
            then, before = self._seen.get(name, (now, tokens))
            if now > then:
                self.per_s[name] = max(tokens - before, 0.0) / (now - then)
            self._seen[name] = now, tokens


async def watch(inspector: Inspector, console: Console, *, is_once: bool) -> None:
    """Until it is cancelled; one look if ``is_once``. Raises QueueUnavailable."""
    rates = Rates()
    fleet = await inspector.status()
    if is_once:
        console.print(draw(fleet, rates), soft_wrap=not console.is_terminal)
        return
    with Live(draw(fleet, rates), console=console, screen=True, auto_refresh=False) as live:
        while True:
            rates.look(fleet, time.monotonic())
            live.update(draw(fleet, rates), refresh=True)
            await asyncio.sleep(_REFRESH_S)
            fleet = await inspector.status()


def draw(fleet: SystemStatus, rates: Rates) -> Group:
    """The screen."""
    return Group(_workers(fleet, rates), _rooms(fleet), _streams(fleet))


def _workers(fleet: SystemStatus, rates: Rates) -> Table:
    title = f"{len(fleet.workers)} workers, {len(fleet.controllers)} controllers"
    if fleet.num_dead_letters:
        title += f", {fleet.num_dead_letters} dead letters"
    table = Table("worker", "model", "device", "streams", "tokens/s", "state", title=title, expand=True)
    for worker in fleet.workers:
        beat = worker.heartbeat
        state = "draining" if beat.is_draining else "running" if worker.num_tokens else "idle"
        if not beat.model:
            state = "no model"
        elif worker.num_tokens and worker.overdue_s:
            state = f"no progress, {worker.overdue_s:.0f} s overdue"
        rate = f"{rates.per_s[beat.worker_id]:.0f}" if beat.worker_id in rates.per_s else "-"
        held = f"{len(worker.num_tokens)}/{beat.capacity}"
        table.add_row(escape(beat.worker_id), escape(beat.model), escape(beat.device), held, rate, state)
    return table


def _rooms(fleet: SystemStatus) -> Table:
    table = Table("waiting for", "high", "normal", "low", "suspects", "tokens", expand=True)
    for model, room in fleet.queues.items():
        numbers = (room.num_high, room.num_normal, room.num_low, room.num_quarantined, room.cost)
        table.add_row(escape(model), *map(str, numbers))
    return table


def _streams(fleet: SystemStatus) -> Table:
    streams = [
        (job_id, worker.heartbeat.worker_id, number)
        for worker in fleet.workers
        for job_id, number in worker.num_tokens.items()
    ]
    more = len(streams) - _NUM_STREAMS
    table = Table("stream", "worker", "tokens", caption=f"and {more} more" if more > 0 else None, expand=True)
    for job_id, worker_id, number in sorted(streams, key=lambda row: -row[2])[:_NUM_STREAMS]:
        table.add_row(escape(job_id), escape(worker_id), str(number))
    return table
