"""The worker process, which runs until SIGTERM or Ctrl-C.

A second signal stops the worker immediately.

Exit status: 0 after a drain, 1 if the worker cannot start, 2 if settings are invalid, 69 if the queue is
unavailable, 70 if the engine or one of its ranks failed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from llava_wire.errors import QueueUnavailable
from llava_wire.otel_setup import SCOPE, TracingUnavailable, open_tracing
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

from llava_worker.engine_thread import EXIT_BROKEN
from llava_worker.gpu_health import log_gpu_health
from llava_worker.import_torch import collect_garbage
from llava_worker.job_output import JobOutput, JobOutputFactory
from llava_worker.model_host import ModelHost
from llava_worker.model_thread import ENGINE_THREAD
from llava_worker.open_model import LoadedModel, StartupError, open_in_thread, open_model
from llava_worker.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # read by llava-serve up
_EXIT_NO_START = 1
_EXIT_NO_QUEUE = 69  # EX_UNAVAILABLE in sysexits.h
# Time after which a thread that prepares a long prompt must leave the interpreter to the engine. The default
# of Python is 5 ms, which is longer than a step on a GPU.
_SWITCH_INTERVAL_S = 0.0005

__all__ = ["LOG_FORMAT", "exit_process", "run"]

logger = logging.getLogger("llava_worker")


def run(settings: Settings) -> int:
    """Run the worker and return its exit status."""
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        provider = open_tracing("llava-worker") if settings.otel else None
        host = ModelHost(settings, _open(settings))
        collect_garbage()
    except (StartupError, TracingUnavailable) as error:
        logger.error("%s", error)
        return _EXIT_NO_START
    try:
        status = asyncio.run(_serve(settings, host, _job_outputs(provider, host.heartbeat.worker_id)))
    except Exception:
        logger.critical("unexpected error; the worker is exiting", exc_info=True)
        return EXIT_BROKEN
    finally:
        if provider is not None:
            provider.shutdown()
    if status == EXIT_BROKEN:
        log_gpu_health(host.heartbeat.device)
    return status


def _open(settings: Settings) -> LoadedModel:
    """Load the model. Raises StartupError."""
    if settings.tensor_parallel > 1:  # the other ranks exit when the thread that started them exits
        return open_model(settings)
    return open_in_thread(settings).result()


def exit_process(status: int) -> NoReturn:
    """Exit with this status, without waiting for a thread that runs an engine."""
    if any(thread.name == ENGINE_THREAD for thread in threading.enumerate()):
        _exit_now(status)
    sys.exit(status)


def _job_outputs(provider: TracerProvider | None, worker_id: str) -> JobOutputFactory:
    if provider is None:
        return JobOutput
    from llava_worker.telemetry.job_spans import traced_job_outputs

    return traced_job_outputs(provider.get_tracer(SCOPE), worker_id=worker_id)


async def _serve(settings: Settings, host: ModelHost, create_output: JobOutputFactory) -> int:
    heartbeat = host.heartbeat
    logger.info(
        "model=%s digest=%s device=%s precision=%s context_length=%d max_num_sequences=%d conversation=%s",
        heartbeat.model,
        heartbeat.model_digest,
        heartbeat.device,
        heartbeat.precision,
        heartbeat.context_length,
        heartbeat.capacity,
        settings.conversation,
    )
    try:
        consumer = await ShardedConsumer.connect(
            settings.shards,
            heartbeat,
            lease_s=settings.lease_s,
            hang_timeout_s=settings.hang_timeout_s,
        )
    except QueueUnavailable as error:
        logger.error("%s", error)
        return _EXIT_NO_QUEUE
    _drain_on_signals(host)
    try:
        return await host.run(consumer, create_output)
    finally:
        await consumer.aclose()


def _drain_on_signals(host: ModelHost) -> None:
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def handle(number: signal.Signals) -> None:
        if received:
            _exit_now(128 + number)
        received.append(number)
        logger.info("received %s: draining; a second signal stops the worker immediately", number.name)
        host.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


def _exit_now(status: int) -> NoReturn:
    """Exit without waiting for threads, because native code cannot be interrupted and steps may be long."""
    logging.shutdown()
    os._exit(status)
