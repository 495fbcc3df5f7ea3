"""The thread that loads a model and then runs its engine.

CUDA graphs and the handles of CUDA's libraries belong to the thread that created them, so both must happen in
the same thread. It also has only one team of OpenMP threads. If the teams of several threads outnumber the
cores, GNU OpenMP makes waiting threads sleep instead of spin, which reduces the engine's throughput by 25 %.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["ENGINE_THREAD", "Call", "ModelThread"]

ENGINE_THREAD = "engine"  # the name of the threads; they cannot be interrupted

_T = TypeVar("_T")


class Call(Generic[_T]):
    """A function that one thread calls, and whose result another thread waits for.

    If the result is cancelled before the call, the function is not called.
    """

    def __init__(self, function: Callable[[], _T]) -> None:
        self.result: Future[_T] = Future()
        self._function = function

    def __call__(self) -> None:
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:  # raised in the thread that waits for the result
            self.result.set_exception(error)
        else:
            self.result.set_result(result)


class ModelThread:
    """A daemon thread that calls functions one after another. It starts immediately."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=ENGINE_THREAD, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], _T]) -> Future[_T]:
        """Call a function in the thread. The result is set once it has returned."""
        call = Call(function)
        self._calls.put(call)
        return call.result

    def close(self) -> None:
        """Let the thread exit after the calls that have been submitted."""
        self._calls.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait until the thread has exited. Return False if this takes longer than ``timeout_s``."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it may refer to a model
