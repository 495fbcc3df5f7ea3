"""The engine thread, which has exclusive access to the engine, and a watchdog that detects hung steps.

    event loop --add, abort--> inbox --> [ engine.add / abort / step ] --outputs, once per step--> event loop

The thread sleeps while the engine has no sequences and nothing to prepare. It exits when it is stopped or
when the engine raises an exception. An engine that has failed is not used again, because its state is
unknown.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

from llava_worker.engine import EngineInterface, Sequence, SequenceRejected, StepOutput
from llava_worker.gpu_health import log_gpu_health
from llava_worker.model_thread import Call, ModelThread

__all__ = ["EXIT_BROKEN", "EngineThread", "end_process"]

EXIT_BROKEN = 70  # EX_SOFTWARE in sysexits.h: the engine failed or hung and the worker should be restarted

_NUM_STEP_TIMES = 15
_STEP_AGE_S = 10.0

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Abort:
    seq_id: str


class EngineThread:
    """A thread that runs the engine.

    ``on_outputs`` and ``on_failure`` are called in the engine's thread and must not block. ``on_hang`` is
    called in the watchdog's thread when a step takes longer than ``hang_timeout_s``. By default, it ends the
    process, because a thread that hangs in native code cannot be stopped. ``device`` is the engine's device.
    ``thread`` is the thread that loaded the model, or None to run the engine in a new thread.
    """

    def __init__(
        self,
        engine: EngineInterface,
        *,
        on_outputs: Callable[[list[StepOutput]], None],
        on_failure: Callable[[], None],
        hang_timeout_s: float,
        device: str = "none",
        on_hang: Callable[[], None] | None = None,
        thread: ModelThread | None = None,
    ) -> None:
        self.num_steps = 0  # number of completed steps, as a measure of progress
        self._step_times: deque[float] = deque(maxlen=_NUM_STEP_TIMES)  # in seconds
        self._last_step_at = 0.0
        self.stats = engine.stats()  # after the last step; other threads must not access the engine
        self._engine = engine
        self._on_outputs = on_outputs
        self._on_failure = on_failure
        self._on_hang = on_hang or partial(end_process, device)
        self._hang_timeout_s = hang_timeout_s
        self._inbox: queue.SimpleQueue[Sequence | _Abort | Callable[[], None] | None] = queue.SimpleQueue()
        self._step_began: float | None = None
        self._stopped = threading.Event()
        self._thread = thread or ModelThread()
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)

    @property
    def step_s(self) -> float:
        """The typical time of an engine step in seconds: the median of the last steps, or 0 if unknown.

        It is unknown after a pause, so that a worker that was slow for a while is measured again.
        """
        times = list(self._step_times)
        is_recent = time.monotonic() - self._last_step_at < _STEP_AGE_S
        return median(times) if is_recent and len(times) == _NUM_STEP_TIMES else 0.0

    def start(self) -> None:
        self._thread.submit(self._run)
        self._thread.close()  # the thread exits when the engine stops
        self._watchdog.start()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, which is then owned by the engine.

        If the engine rejects the sequence, an error is returned as its final output.
        """
        self._inbox.put(sequence)

    def abort(self, seq_id: str) -> None:
        """Abort a sequence if it has not finished. Outputs that are already queued are still delivered."""
        self._inbox.put(_Abort(seq_id))

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Call a function in the engine's thread between two steps, unless the engine stops before."""
        call = Call(function)
        self._inbox.put(call)
        return call.result

    def stop(self, timeout_s: float) -> bool:
        """Stop after the current step. Return False if the step does not finish within ``timeout_s``."""
        self._stopped.set()
        self._inbox.put(None)
        has_stopped = self._thread.join(timeout_s)
        if not has_stopped:
            logger.warning("the engine's current step did not finish within %g s", timeout_s)
        return has_stopped

    def _run(self) -> None:
        try:
            self._engine.bind_thread()
            while not self._stopped.is_set():
                outputs = self._take_inbox()
                if not self._stopped.is_set() and self._engine.num_sequences:
                    outputs += self._step()
                self.stats = self._engine.stats()
                if outputs:
                    self._on_outputs(outputs)
        except BaseException as error:  # the thread must never end without a report
            logger.critical("the engine failed", exc_info=error)
            self._on_failure()
        finally:
            self._stopped.set()

    def _take_inbox(self) -> list[StepOutput]:
        """Process the inbox and return any rejections. If the engine is empty, wait for the first item."""
        rejections: list[StepOutput] = []
        is_waiting = not self._engine.num_sequences
        while is_waiting and self._inbox.empty() and self._engine.idle():
            self._engine.bind_thread()
        while True:
            try:
                item = self._inbox.get(block=is_waiting)
            except queue.Empty:
                return rejections
            is_waiting = False
            if isinstance(item, _Abort):
                self._engine.abort(item.seq_id)
            elif isinstance(item, Sequence):
                rejections += self._add(item)
            elif item is not None:
                item()

    def _add(self, sequence: Sequence) -> list[StepOutput]:
        try:
            self._engine.add(sequence)
        except SequenceRejected as rejected:
            return [StepOutput(sequence.seq_id, error=rejected.error)]
        return []

    def _step(self) -> list[StepOutput]:
        began = self._step_began = time.monotonic()
        outputs = self._engine.step()
        self._step_began = None
        self._last_step_at = time.monotonic()
        self._step_times.append(self._last_step_at - began)
        self.num_steps += 1
        return outputs

    def _watch(self) -> None:
        while not self._stopped.wait(self._hang_timeout_s / 8):
            began = self._step_began
            if began is not None and time.monotonic() - began > self._hang_timeout_s:
                logger.critical("the engine is hung: its current step exceeded %g s", self._hang_timeout_s)
                self._on_hang()
                return


def end_process(device: str) -> None:
    """Log the health of the GPUs and exit with EXIT_BROKEN. Other workers resume the running jobs."""
    log_gpu_health(device)
    logging.shutdown()
    os._exit(EXIT_BROKEN)
