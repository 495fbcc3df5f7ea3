"""Supervision of long-lived tasks: a task that crashes is logged, counted and restarted.

An asyncio task that raises an exception ends without any effect on the rest of the process. All tasks that
outlive the call that starts them are therefore started here. The owner of a task decides what a crash means:

- By default, the task is restarted, forever. The delay doubles with each crash.
- With ``max_restarts``, the task ends after more crashes in a row, and ``on_final_crash`` is called. The
  owner can then end a stream, or the process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

__all__ = ["SupervisedTasks"]

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 30.0
_STABLE_S = 60.0  # a run that lasted this long was stable: the crashes before it no longer count
_MAX_DOUBLINGS = 16


class SupervisedTasks:
    """The long-lived tasks of one owner, who must call ``aclose``.

    ``count_crash(name)`` is called for each crash. It can be omitted in processes without metrics.
    """

    def __init__(self, count_crash: Callable[[str], None] | None = None) -> None:
        self._count_crash = count_crash
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        max_restarts: float = math.inf,
        on_final_crash: Callable[[BaseException], None] | None = None,
    ) -> asyncio.Task[None]:
        """Call ``run`` in a new task until it returns, and call it again whenever it raises an exception.

        ``name`` identifies the task in the log and in the metrics, so it must be one of a few fixed names.
        The caller may cancel the returned task, which never raises an exception.
        """
        task = asyncio.create_task(self._supervise(name, run, max_restarts, on_final_crash), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _supervise(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        max_restarts: float,
        on_final_crash: Callable[[BaseException], None] | None,
    ) -> None:
        num_crashes = 0  # in a row
        while True:
            began = time.monotonic()
            try:
                await run()
                return
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancel_requested():
                    raise
                crash = error
            num_crashes = 1 if time.monotonic() - began > _STABLE_S else num_crashes + 1
            if self._count_crash is not None:
                self._count_crash(name)
            if num_crashes > max_restarts:
                logger.error("the task %r crashed and is not restarted", name, exc_info=crash)
                if on_final_crash is not None:
                    on_final_crash(crash)
                return
            delay_s = min(_FIRST_DELAY_S * 2 ** min(num_crashes - 1, _MAX_DOUBLINGS), _MAX_DELAY_S)
            logger.error("the task %r crashed, restarting it in %g s", name, delay_s, exc_info=crash)
            await asyncio.sleep(delay_s)


def _is_cancel_requested() -> bool:
    """Return whether the current task was cancelled, rather than something that it awaited.

    Python 3.10 does not distinguish the two cases.
    """
    num_requests: Callable[[], int] | None = getattr(asyncio.current_task(), "cancelling", None)
    return num_requests is None or num_requests() > 0
