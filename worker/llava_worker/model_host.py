"""One model after another in one process: first the one it was started with, then as an operator orders.

    Worker.run (serves)  --order: drains-->  no model  --order: opens it in a thread-->  Worker.run ...

The heartbeat goes on through all of it under one worker id. A refused order changes nothing; after a failed
one there is no model, and the next order may come.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import msgspec
from llava_wire.messages.commands import CommandStatus, IssuedCommand
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.worker_side.consumer import JobConsumer

from llava_worker.event_wait import wait_until_set
from llava_worker.job_output import Answer
from llava_worker.load_progress import LoadProgress
from llava_worker.model_switch import OrderRefused, settings_for
from llava_worker.open_model import Model, StartupError, open_model
from llava_worker.settings import Settings
from llava_worker.worker import LEAVE_TIMEOUT_S, Worker

__all__ = ["LOADER", "ModelHost"]

LOADER = "loader"  # begins the name of the thread that opens a model; it cannot be interrupted

logger = logging.getLogger(__name__)


class ModelHost:
    """Runs once. It is the only one that holds the model, so that nothing of it is left when it lets go."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.heartbeat: Heartbeat = model.heartbeat  # as it was started
        self._started = settings
        self._present: Settings | None = settings  # those of the model that there is
        self._wanted: Settings | None = settings
        self._model: Model | None = model
        self._worker: Worker | None = None
        self._order: IssuedCommand | None = None  # being carried out
        self._progress = 0.0
        self._beat_s = min(1.0, settings.lease_s / 4)
        self._has_order = asyncio.Event()
        self._leaving = asyncio.Event()

    def drain(self) -> None:
        """Let ``run`` return as soon as what runs is handed on. Call it in the event loop's thread."""
        self._leaving.set()
        if self._worker is not None:
            self._worker.drain()

    async def run(self, consumer: JobConsumer, make_answer: Callable[..., Answer] = Answer) -> int:
        """The exit status, as ``Worker.run`` has it."""
        while self._model is not None or not self._leaving.is_set():
            if self._model is not None:
                status = await self._serve(consumer, make_answer)
                if status or self._leaving.is_set():
                    return status
            else:
                await self._unless_leaving(self._open(consumer) if self._order else self._rest(consumer))
            if not self._leaving.is_set():  # else a model may still be loading, and torch be half imported
                _release_memory()
        with suppress(asyncio.TimeoutError):  # the lease ends by itself
            await asyncio.wait_for(consumer.leave(), LEAVE_TIMEOUT_S)
        return 0

    async def _serve(self, consumer: JobConsumer, make_answer: Callable[..., Answer]) -> int:
        """Until it shall end, or an order comes that needs the model gone."""
        assert self._model is not None
        model, self._model = self._model, None
        self._worker = Worker(
            consumer,
            model.engine,
            prompts=model.prompts,
            tokenizer=model.tokenizer,
            heartbeat=model.heartbeat,
            beat_s=self._beat_s,
            drain_timeout_s=self._started.drain_timeout_s,
            hang_timeout_s=self._started.hang_timeout_s,
            grammars=model.grammars,
            make_answer=make_answer,
            on_order=lambda order: self._take(order, consumer),
        )
        if self._leaving.is_set():
            self._worker.drain()
        try:
            return await self._worker.run()
        finally:
            self._worker = self._present = None

    async def _rest(self, consumer: JobConsumer) -> None:
        """Without a model, until there is an order to carry out."""
        while self._order is None:
            await self._beat(consumer)
            await wait_until_set(self._has_order, self._beat_s)

    async def _open(self, consumer: JobConsumer) -> None:
        """Carries the order out: what was there is gone."""
        wanted = self._wanted
        if wanted is None:
            self._settle(consumer, "done")
            return
        loader = ThreadPoolExecutor(1, thread_name_prefix=LOADER)  # of its own: see ``_open`` of __main__
        shown = LoadProgress()

        def note(num_done: int, num_bytes: int, num_tensors: int) -> None:
            self._progress = num_done / max(num_bytes, 1)
            shown(num_done, num_bytes, num_tensors)

        loading = asyncio.wrap_future(loader.submit(open_model, wanted, on_progress=note))
        loader.shutdown(wait=False)
        while not loading.done():
            self._report(consumer, "running")
            await self._beat(consumer)
            await asyncio.wait([loading], timeout=self._beat_s)
        try:
            model = loading.result()
        except StartupError as error:
            self._settle(consumer, "failed", str(error))
        except Exception as error:  # out of memory, a file that is none: the worker lives on, and says so
            logger.exception("model %s cannot be opened", wanted.model)
            self._settle(consumer, "failed", f"{type(error).__name__}: {error}")
        else:
            own = msgspec.structs.replace(model.heartbeat, worker_id=self.heartbeat.worker_id)
            self._model, self._present = replace(model, heartbeat=own), wanted
            self._settle(consumer, "done")

    async def _beat(self, consumer: JobConsumer) -> None:
        """Alive, and without a model."""
        vacant = msgspec.structs.replace(
            self.heartbeat, model="", precision="none", capacity=0, context_length=0, stats={}
        )
        order = await consumer.beat(vacant)
        if order is not None:
            self._take(order, consumer)

    def _take(self, order: IssuedCommand, consumer: JobConsumer) -> None:
        """An order has come; the one before is settled."""
        model = order.instruction.model
        logger.info("%s: %s", order.order_id, "unload" if model is None else f"load {model!r}")
        self._order = order
        try:
            self._wanted = settings_for(order.instruction, self._started)
        except OrderRefused as refused:
            self._settle(consumer, "refused", str(refused))
        else:
            if self._wanted == self._present:
                self._settle(consumer, "done")
                return
            self._progress = 0.0
            self._report(consumer, "running")
            self._has_order.set()
            if self._worker is not None:
                self._worker.drain(is_staying=True)

    def _report(
        self,
        consumer: JobConsumer,
        state: Literal["running", "done", "refused", "failed"],
        message: str = "",
    ) -> None:
        assert self._order is not None
        progress = 1.0 if state == "done" else self._progress
        consumer.report(
            CommandStatus(order_id=self._order.order_id, state=state, message=message, progress=progress)
        )

    def _settle(
        self, consumer: JobConsumer, state: Literal["done", "refused", "failed"], message: str = ""
    ) -> None:
        assert self._order is not None
        logger.info("%s: %s%s", self._order.order_id, state, f": {message}" if message else "")
        self._report(consumer, state, message)
        self._order = None
        self._has_order.clear()

    async def _unless_leaving(self, phase: Coroutine[Any, Any, None]) -> None:
        task, leaving = asyncio.create_task(phase), asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            leaving.cancel()
            await asyncio.gather(task, leaving, return_exceptions=True)


def _release_memory() -> None:
    """Gives back what nobody holds: objects in circles first, then what glibc and torch keep in reserve."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # other C libraries have none
        trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
