"""Serves one model at a time in one process: first the configured model, then models loaded by an operator.

    Worker.run (serving)  --command: drain-->  no model  --command: load in a thread-->  Worker.run ...

Heartbeats with the same worker ID are sent throughout. A rejected command has no effect. If a load fails, the
worker has no model and waits for the next command.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from dataclasses import replace
from typing import Any, Literal

import msgspec
from anyio import CancelScope, move_on_after
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.load_command import CommandStatus, IssuedCommand
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

from llava_worker.job_output import JobOutput, JobOutputFactory
from llava_worker.load_progress import LoadProgress
from llava_worker.loadable_models import CommandRefused, settings_for_command
from llava_worker.model.heap import trim_heap
from llava_worker.open_model import LoadedModel, StartupError, open_in_thread
from llava_worker.settings import Settings
from llava_worker.worker import LEAVE_TIMEOUT_S, Worker

__all__ = ["ModelHost"]

logger = logging.getLogger(__name__)


class ModelHost:
    """Owns the process's current model. An instance can run only once.

    It holds the only reference to the model, so unloading the model frees all of its memory.
    """

    def __init__(self, settings: Settings, model: LoadedModel) -> None:
        self.heartbeat: Heartbeat = model.heartbeat  # heartbeat of the startup model
        self._startup_settings = settings
        self._loaded_settings: Settings | None = settings  # None while no model is loaded
        self._target_settings: Settings | None = settings  # requested by the current command
        self._model: LoadedModel | None = model  # loaded but not yet served
        self._worker: Worker | None = None
        self._unused: list[object] = []  # the previous model and its worker, to be freed
        self._command: IssuedCommand | None = None  # the command in progress
        self._progress = 0.0
        self._beat_s = min(1.0, settings.lease_s / 4)
        self._has_command = asyncio.Event()
        self._is_draining = False
        self._idle_scope: CancelScope | None = None  # open while no model is served

    def drain(self) -> None:
        """Return running jobs to the queue and let ``run`` return.

        Must be called in the event loop's thread.
        """
        self._is_draining = True
        if self._idle_scope is not None:
            self._idle_scope.cancel()
        if self._worker is not None:
            self._worker.drain()

    async def run(self, consumer: ShardedConsumer, create_output: JobOutputFactory = JobOutput) -> int:
        """Serve models until drained. Return the exit status of ``Worker.run``."""
        while self._model is not None or not self._is_draining:
            if self._model is not None:
                status = await self._serve(consumer, create_output)
                if status or self._is_draining:
                    return status
            else:
                with CancelScope() as self._idle_scope:
                    await (self._load(consumer) if self._command else self._wait_for_command(consumer))
            # During a drain, a model may still be loading, and torch may be only partly imported.
            if not self._is_draining:
                with CancelScope() as self._idle_scope:
                    await self._free_unused(consumer)
        with move_on_after(LEAVE_TIMEOUT_S):  # if this fails, the lease expires
            await consumer.deregister()
        return 0

    async def _serve(self, consumer: ShardedConsumer, create_output: JobOutputFactory) -> int:
        """Serve the model until drained or until a command replaces or unloads it."""
        assert self._model is not None
        model, self._model = self._model, None
        self._worker = Worker(
            consumer,
            model.engine,
            prompts=model.prompts,
            tokenizer=model.tokenizer,
            heartbeat=model.heartbeat,
            beat_s=self._beat_s,
            drain_timeout_s=self._startup_settings.drain_timeout_s,
            hang_timeout_s=self._startup_settings.hang_timeout_s,
            grammars=model.grammars,
            create_output=create_output,
            on_command=lambda command: self._accept_command(command, consumer),
            engine_thread=model.thread,
            unstored_weights=model.unstored_weights,
        )
        if self._is_draining:
            self._worker.drain()
        try:
            return await self._worker.run()
        finally:
            self._unused += [model, self._worker]
            self._worker = self._loaded_settings = None

    async def _free_unused(self, consumer: ShardedConsumer) -> None:
        """Free the previous model in a thread, because freeing 60 GiB takes about 5 seconds."""
        freed = asyncio.get_running_loop().run_in_executor(None, _release_memory, self._unused)
        if self._model is None:  # otherwise, the first heartbeat after a load must contain the model
            await self._send_heartbeats_until(freed, consumer)
        await freed

    async def _wait_for_command(self, consumer: ShardedConsumer) -> None:
        """Send heartbeats without a model until a command arrives."""
        while self._command is None:
            await self._send_heartbeat(consumer)
            with move_on_after(self._beat_s):
                await self._has_command.wait()

    async def _load(self, consumer: ShardedConsumer) -> None:
        """Load the requested model, if any. The previous model has already been unloaded."""
        settings = self._target_settings
        if settings is None:
            self._finish_command(consumer, "done")
            return
        show_progress = LoadProgress()

        def on_progress(num_done: int, num_bytes: int, num_tensors: int) -> None:
            self._progress = num_done / max(num_bytes, 1)
            show_progress(num_done, num_bytes, num_tensors)

        loading = asyncio.wrap_future(open_in_thread(settings, on_progress=on_progress))
        await self._send_heartbeats_until(loading, consumer)
        try:
            model = loading.result()
        except StartupError as error:
            self._finish_command(consumer, "failed", str(error))
        except Exception as error:  # for example, out of memory or a corrupt file; the worker keeps running
            logger.exception("failed to load model %s", settings.model)
            self._finish_command(consumer, "failed", f"{type(error).__name__}: {error}")
        else:
            heartbeat = msgspec.structs.replace(model.heartbeat, worker_id=self.heartbeat.worker_id)
            self._model, self._loaded_settings = replace(model, heartbeat=heartbeat), settings
            self._finish_command(consumer, "done")

    async def _send_heartbeats_until(self, done: asyncio.Future[Any], consumer: ShardedConsumer) -> None:
        """Send heartbeats without a model, and the progress of any command, until the future is done."""
        while not done.done():
            if self._command is not None:
                self._report(consumer, "running")
            await self._send_heartbeat(consumer)
            await asyncio.wait([done], timeout=self._beat_s)

    async def _send_heartbeat(self, consumer: ShardedConsumer) -> None:
        """Send the heartbeat of a worker without a model."""
        heartbeat = msgspec.structs.replace(
            self.heartbeat,
            model="",
            model_digest="",
            precision="none",
            capacity=0,
            context_length=0,
            kernels=None,
            engine=None,
            stats={},
        )
        command = await consumer.send_heartbeat(heartbeat)
        if command is not None:
            self._accept_command(command, consumer)

    def _accept_command(self, command: IssuedCommand, consumer: ShardedConsumer) -> None:
        """Start executing a command, or reject it. Any previous command has already finished."""
        model = command.command.model
        logger.info("%s: %s", command.command_id, "unload" if model is None else f"load {model!r}")
        self._command = command
        try:
            self._target_settings = settings_for_command(command.command, self._startup_settings)
        except CommandRefused as refused:
            self._finish_command(consumer, "refused", str(refused))
            return
        if self._target_settings == self._loaded_settings:
            self._finish_command(consumer, "done")
            return
        self._progress = 0.0
        self._report(consumer, "running")
        self._has_command.set()
        if self._worker is not None:
            self._worker.drain(is_model_switch=True)

    def _report(
        self,
        consumer: ShardedConsumer,
        state: Literal["running", "done", "refused", "failed"],
        message: str = "",
    ) -> None:
        assert self._command is not None
        progress = 1.0 if state == "done" else self._progress
        consumer.report_command(
            CommandStatus(
                command_id=self._command.command_id, state=state, message=message, progress=progress
            )
        )

    def _finish_command(
        self, consumer: ShardedConsumer, state: Literal["done", "refused", "failed"], message: str = ""
    ) -> None:
        assert self._command is not None
        logger.info("%s: %s%s", self._command.command_id, state, f": {message}" if message else "")
        self._report(consumer, state, message)
        self._command = None
        self._has_command.clear()


def _release_memory(unused: list[object]) -> None:
    """Drop these objects and reference cycles, then release free memory of the glibc and torch allocators."""
    unused.clear()  # torch releases the GIL while it frees a tensor
    # While torch is imported, it creates a frame that refers to itself and, through its callers, to the local
    # variables of the function that loads the first model. This cycle is frozen by `collect_garbage`.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    trim_heap()
    if "torch" in sys.modules:
        from llava_worker.model.gpu.current_gpu import release_cached_memory

        release_cached_memory()
