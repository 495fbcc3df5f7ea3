"""``python -m llava_worker``: one worker, until SIGTERM or Ctrl-C. A second signal ends it at once.

Exit status: 0 drained, 1 could not start, 2 wrong settings, 69 no queue, 70 the engine or one of
its ranks failed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from llava_wire.errors import QueueUnavailable
from llava_wire.otel import SCOPE, TracingUnavailable, open_tracing
from llava_wire.worker_side.consumer import JobConsumer

from llava_worker.engine_thread import EXIT_BROKEN
from llava_worker.gpu_health import log_health
from llava_worker.job_output import Answer
from llava_worker.model_host import LOADER, ModelHost
from llava_worker.open_model import Model, StartupError, open_model
from llava_worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_EXIT_NO_START = 1
_EXIT_NO_QUEUE = 69  # sysexits' EX_UNAVAILABLE

logger = logging.getLogger("llava_worker")


def main() -> int:
    """The exit status."""
    settings = load_settings(sys.argv[1:])
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        provider = open_tracing("llava-worker") if settings.otel else None
        host = ModelHost(settings, _open(settings))
    except (StartupError, TracingUnavailable) as error:
        logger.error("%s", error)
        return _EXIT_NO_START
    try:
        status = asyncio.run(_serve(settings, host, _answers(provider, host.heartbeat.worker_id)))
    except Exception:
        logger.critical("the worker has a defect and ends", exc_info=True)
        return EXIT_BROKEN
    finally:
        if provider is not None:
            provider.shutdown()
    if status == EXIT_BROKEN:
        log_health(host.heartbeat.device)
    return status


def _open(settings: Settings) -> Model:
    """In a thread that ends, and its OpenMP threads with it. Raises StartupError.

    GNU's OpenMP counts the threads of all teams: where they are more than the cores, each falls asleep
    as soon as it waits, which took a quarter of the engine's speed.
    """
    if settings.tensor_parallel > 1:  # other ranks die with the thread that began them
        return open_model(settings)
    with ThreadPoolExecutor(1, thread_name_prefix=LOADER) as pool:
        return pool.submit(open_model, settings).result()


def _answers(provider: TracerProvider | None, worker_id: str) -> Callable[..., Answer]:
    if provider is None:
        return Answer
    from llava_worker.telemetry.job_spans import answers_traced

    return answers_traced(provider.get_tracer(SCOPE), worker_id=worker_id)


async def _serve(settings: Settings, host: ModelHost, make_answer: Callable[..., Answer]) -> int:
    heartbeat = host.heartbeat
    logger.info(
        "model=%s device=%s precision=%s context_length=%d max_num_sequences=%d conversation=%s",
        heartbeat.model,
        heartbeat.device,
        heartbeat.precision,
        heartbeat.context_length,
        heartbeat.capacity,
        settings.conversation,
    )
    try:
        consumer = await JobConsumer.connect(
            settings.redis_url.get_secret_value(),
            heartbeat,
            lease_s=settings.lease_s,
            hang_timeout_s=settings.hang_timeout_s,
        )
    except QueueUnavailable as error:
        logger.error("%s", error)
        return _EXIT_NO_QUEUE
    _drain_on_signals(host)
    try:
        return await host.run(consumer, make_answer)
    finally:
        await consumer.aclose()


def _drain_on_signals(host: ModelHost) -> None:
    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def handle(number: signal.Signals) -> None:
        if seen:
            _end_now(128 + number)
        seen.append(number)
        logger.info("%s: draining; send it again to end at once", number.name)
        host.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


def _end_now(status: int) -> None:
    """Without waiting for threads: one may sit in a long step, and native code cannot be interrupted."""
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    exit_status = main()
    if any(thread.name == "engine" or thread.name.startswith(LOADER) for thread in threading.enumerate()):
        _end_now(exit_status)
    sys.exit(exit_status)
