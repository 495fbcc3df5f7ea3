"""Supervises the children of ``llava-serve up``: restarts them, and shuts them down in order.

Until ``enable_restarts`` is called, a child that exits is not restarted, because restarting a program that
fails during startup is pointless. After the call, children that exit are restarted with increasing delays
until their restart budget is exhausted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from llava_cli.up.child_process import Child, Program, describe_exit

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ChildFailed", "RestartBudget", "Supervisor"]


class ChildFailed(Exception):
    """A child exited with ``status`` and will not be restarted. ``tail`` holds its last output lines."""

    def __init__(self, name: str, status: int, tail: Sequence[str], when: str) -> None:
        super().__init__(
            f"{name} {describe_exit(status)} {when}. Correct the cause given in its output above, and retry."
        )
        self.status = status
        self.tail = tuple(tail)


@dataclass(frozen=True)
class RestartBudget:
    """Allows each child ``max_restarts`` restarts within ``window_s`` seconds.

    The delay doubles with each restart, up to ``max_delay_s``.
    """

    max_restarts: int = 5
    window_s: float = 300.0
    initial_delay_s: float = 0.5
    max_delay_s: float = 15.0

    def delay_s(self, num_recent: int) -> float | None:
        """Return the delay before the next restart, or None if ``num_recent`` restarts exhaust the budget."""
        if num_recent >= self.max_restarts:
            return None
        return min(self.initial_delay_s * 2.0**num_recent, self.max_delay_s)


class Supervisor:
    """A context manager that starts layers of children in order and stops them in reverse order.

    Once ``kill_now`` is set, children are killed instead of being stopped gracefully. ``on_event`` is called
    with a message before each restart.
    """

    def __init__(
        self,
        *,
        on_line: Callable[[str, str], None],
        on_event: Callable[[str], None],
        kill_now: asyncio.Event,
        budget: RestartBudget | None = None,
    ) -> None:
        self._on_line = on_line
        self._on_event = on_event
        self._kill_now = kill_now
        self._budget = budget or RestartBudget()
        self._process_layers: list[list[Child]] = []
        self._monitors: list[asyncio.Task[None]] = []
        self._is_restarting = False
        self._killed: set[Child] = set()  # killed by ``kill`` and not restarted yet
        self._failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for monitor in self._monitors:  # first, so that children stopped below are not restarted
            monitor.cancel()
        await asyncio.gather(*self._monitors, return_exceptions=True)
        for layer in reversed(self._process_layers):
            await asyncio.gather(*(child.stop(self._kill_now) for child in layer))
        for layer in self._process_layers:
            await asyncio.gather(*(child.aclose() for child in layer))

    async def start(self, layer: Sequence[Program]) -> None:
        """Start the programs in one layer without waiting for them to become ready."""
        children = [Child(program, self._on_line) for program in layer]
        self._process_layers.append(children)
        for child in children:
            await child.start()
            monitor = asyncio.create_task(self._monitor(child))
            monitor.add_done_callback(self._report_crash)
            self._monitors.append(monitor)

    def enable_restarts(self) -> None:
        """From now on, restart children that exit."""
        self._is_restarting = True

    def kill(self, pid: int) -> bool:
        """Kill the worker with this process ID, which is then restarted. Return whether it was found.

        This does not count towards the restart budget.
        """
        for child in (child for layer in self._process_layers for child in layer):
            if child.pid == pid and child.program.is_worker:
                self._killed.add(child)
                child.kill()
                return True
        return False

    async def watch(self) -> None:
        """Wait until a child exits and cannot be restarted, then raise ChildFailed.

        Never returns normally. If a child can no longer be monitored, for example because the system refuses
        to start another process, the error is raised.
        """
        raise await asyncio.shield(self._failure)

    async def _monitor(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        restarts: deque[float] = deque()
        while True:
            status = await child.wait()
            if (error := child.reader_error) is not None:
                raise error
            while restarts and restarts[0] < loop.time() - self._budget.window_s:
                restarts.popleft()
            is_killed = child in self._killed
            self._killed.discard(child)
            delay_s = self._budget.delay_s(0 if is_killed else len(restarts)) if self._is_restarting else None
            if delay_s is None:
                self._fail(child, status, num_restarts=len(restarts))
                return
            name = child.program.name
            self._on_event(f"{name} {describe_exit(status)}; restarting in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            if not is_killed:
                restarts.append(loop.time())
            await child.start()

    def _report_crash(self, monitor: asyncio.Task[None]) -> None:
        """End ``watch`` if a monitor crashed, because its child would not be restarted anymore."""
        error = None if monitor.cancelled() else monitor.exception()
        if isinstance(error, Exception) and not self._failure.done():
            self._failure.set_result(error)

    def _fail(self, child: Child, status: int, *, num_restarts: int) -> None:
        restarts = "1 restart" if num_restarts == 1 else f"{num_restarts} restarts"
        when = f"after {restarts}" if self._is_restarting else "before it was ready"
        if not self._failure.done():
            self._failure.set_result(ChildFailed(child.program.name, status, child.tail, when))
