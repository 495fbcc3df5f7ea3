"""The one thread that touches the engine, and the watchdog that notices when it never comes back.

    asyncio side --add, abort--> inbox --> [ engine.add / abort / step ] --news, once a step--> asyncio side

The thread sleeps while the engine is empty and has nothing to prepare. It ends when it is told to or when
the engine breaks; an engine that has raised is never used again, since nobody knows what state it is in.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from llava_worker.engine import EngineStats, Sequence, SequenceRefused, StepOutput
from llava_worker.gpu_health import log_gpu_health

__all__ = ["EXIT_BROKEN", "Engine", "EngineThread", "News", "Refusal", "end_process"]

EXIT_BROKEN = 70  # sysexits' EX_SOFTWARE: the engine failed or hangs; a supervisor should start a new process

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What the worker needs of an engine; used by one thread only."""

    @property
    def max_sequences(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def num_sequences(self) -> int:
        """Waiting and running ones."""
        ...

    def add(self, sequence: Sequence) -> None: ...
    def abort(self, seq_id: str) -> None: ...
    def step(self) -> list[StepOutput]: ...
    def idle(self) -> bool:
        """Prepares for some milliseconds; asked while there are no sequences, until it says False."""
        ...

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """The engine did not take the sequence; ``code`` is one of ErrorCode's values."""

    seq_id: str
    code: str
    message: str
    param: str | None = None  # the field of the request that is to blame, if one is


News: TypeAlias = StepOutput | Refusal


@dataclass(frozen=True, slots=True)
class _Abort:
    seq_id: str


class EngineThread:
    """``on_news`` and ``on_failure`` are called in the engine's thread and must return at once.

    ``on_hang`` is called in the watchdog's thread once a step lasts longer than ``hang_timeout_s``. Its
    default ends the process, because a thread that hangs in native code cannot be ended. ``device`` is the
    engine's.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_news: Callable[[list[News]], None],
        on_failure: Callable[[], None],
        hang_timeout_s: float,
        device: str = "none",
        on_hang: Callable[[], None] | None = None,
    ) -> None:
        self.num_steps = 0  # finished steps: the sign of progress
        self.stats = engine.stats()  # as it was after the last step; the engine itself is the thread's alone
        self._engine = engine
        self._on_news = on_news
        self._on_failure = on_failure
        self._on_hang = on_hang or partial(end_process, device)
        self._hang_timeout_s = hang_timeout_s
        self._inbox: queue.SimpleQueue[Sequence | _Abort | None] = queue.SimpleQueue()
        self._step_began: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._watchdog.start()

    def add(self, sequence: Sequence) -> None:
        """From now on only the engine touches the sequence."""
        self._inbox.put(sequence)

    def abort(self, seq_id: str) -> None:
        """Sequences that ended by themselves are nothing to abort. News already under way still comes."""
        self._inbox.put(_Abort(seq_id))

    def stop(self, timeout_s: float) -> bool:
        """After the step in hand; False if that took longer than ``timeout_s``."""
        self._stopped.set()
        self._inbox.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("the engine's step is not over after %g s", timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                news = self._take_inbox()
                if not self._stopped.is_set() and self._engine.num_sequences:
                    news += self._step()
                self.stats = self._engine.stats()
                if news:
                    self._on_news(news)
        except Exception as error:
            logger.critical("the engine failed", exc_info=error)
            self._on_failure()
        finally:
            self._stopped.set()

    def _take_inbox(self) -> list[News]:
        """Everything that has come; waits for the first if the engine has nothing to do."""
        news: list[News] = []
        is_waiting = not self._engine.num_sequences
        while is_waiting and self._inbox.empty() and self._engine.idle():
            pass
        while True:
            try:
                item = self._inbox.get(block=is_waiting)
            except queue.Empty:
                return news
            is_waiting = False
            if isinstance(item, _Abort):
                self._engine.abort(item.seq_id)
            elif item is not None:
                news += self._add(item)

    def _add(self, sequence: Sequence) -> list[News]:
        try:
            self._engine.add(sequence)
        except SequenceRefused as refused:
            return [Refusal(sequence.seq_id, refused.code, refused.message, refused.param)]
        return []

    def _step(self) -> list[StepOutput]:
        self._step_began = time.monotonic()
        outputs = self._engine.step()
        self._step_began = None
        self.num_steps += 1
        return outputs

    def _watch(self) -> None:
        while not self._stopped.wait(self._hang_timeout_s / 8):
            began = self._step_began
            if began is not None and time.monotonic() - began > self._hang_timeout_s:
                logger.critical("the engine has been in one step for more than %g s", self._hang_timeout_s)
                self._on_hang()
                return


def end_process(device: str) -> None:
    """As broken, once a GPU's health is in the log: what the process holds goes on elsewhere."""
    log_gpu_health(device)
    logging.shutdown()
    os._exit(EXIT_BROKEN)
