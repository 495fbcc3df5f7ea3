"""Everything that lives as long as the app, made in one place and closed in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from llava_wire.controller_side.producer import JobProducer
from llava_wire.operator.inspector import Inspector
from llava_wire.operator.worker_commands import CommandSender
from llava_wire.stores.api_keys import ApiKeyStore
from llava_wire.stores.batches import BatchStore
from llava_wire.stores.files import FileLimits, FileStore
from llava_wire.stores.rate_limits import RateLimitStore
from starlette.requests import Request

from llava_server.engine_metrics import EngineCollector
from llava_server.generation.controller import Controller
from llava_server.images.decoder_pool import DecodePool
from llava_server.images.errors import PictureLimits
from llava_server.images.fetch import FetchRules, PictureFetcher
from llava_server.images.loader import PictureIntake
from llava_server.middleware.auth import ApiKeys
from llava_server.middleware.rate_limit import RateLimiter
from llava_server.periodic import every
from llava_server.request_metrics import Metrics
from llava_server.settings import Settings
from llava_server.shutdown import Drain
from llava_server.worker_registry import WorkerRegistry

__all__ = ["Services", "open_services", "services_of"]

logger = logging.getLogger(__name__)

_REFRESH_S = 1.0
_KEYS_REFRESH_S = 3.0  # how long a revoked key may live on; new ones are looked for when they come
_MIB = 2**20
_DAY_S = 86400.0
_BATCH_LEASE_S = 5.0  # a controller that drives a batch and is silent for so long has lost it


@dataclass(frozen=True)
class Services:
    """What routes use."""

    settings: Settings
    metrics: Metrics
    drain: Drain
    registry: WorkerRegistry
    controller: Controller
    intake: PictureIntake
    pool: DecodePool
    keys: ApiKeys
    parsers: ThreadPoolExecutor  # for bodies too large for the event loop
    files: FileStore
    batches: BatchStore
    inspector: Inspector
    orders: CommandSender


def services_of(request: Request) -> Services:
    """The services of the app that serves this request."""
    services = request.app.state.services
    if not isinstance(services, Services):
        raise RuntimeError("a request came before the app had started")
    return services


@asynccontextmanager
async def open_services(
    settings: Settings, metrics: Metrics, drain: Drain, keys: ApiKeys, limiter: RateLimiter
) -> AsyncIterator[Services]:
    """Raises QueueUnavailable if the queue cannot be reached at start."""
    url = settings.redis_url.get_secret_value()
    producer = await JobProducer.connect(
        url,
        max_queued=settings.max_queued,
        max_queued_cost=settings.max_queued_tokens,
        max_tenant_jobs=settings.max_tenant_jobs,
        max_tenant_cost=settings.max_tenant_tokens,
        lease_s=settings.lease_s,
        hang_timeout_s=settings.hang_timeout_s,
        orphan_grace_s=settings.orphan_grace_s,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(producer.aclose)
        ring, windows = ApiKeyStore(url), RateLimitStore(url)
        stack.push_async_callback(ring.aclose)
        stack.push_async_callback(windows.aclose)
        stores = _stores(url, settings)
        for store in stores:
            stack.push_async_callback(store.aclose)
        keys.attach(ring)
        limiter.attach(windows)
        pool = DecodePool(num_children=settings.image_workers, limits=_picture_limits(settings))
        stack.push_async_callback(pool.aclose)
        intake = PictureIntake(
            pool,
            PictureFetcher(_fetch_rules(settings)),
            metrics,
            max_bytes=settings.max_image_mb * _MIB,
            cache_bytes=settings.image_cache_mb * _MIB,
        )
        stack.callback(intake.close)
        parsers = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="parse"))
        registry = WorkerRegistry(producer, metrics)
        collector = EngineCollector(registry)
        metrics.registry.register(collector)
        stack.callback(metrics.registry.unregister, collector)
        controller = Controller(
            producer,
            metrics,
            limiter,
            queue_timeout_s=settings.queue_timeout_s,
            orphan_grace_s=settings.orphan_grace_s,
        )
        await asyncio.gather(pool.start(), registry.refresh(), keys.refresh())
        _say_who_may_ask(keys)
        await stack.enter_async_context(_running(controller, registry, keys))
        yield Services(settings, metrics, drain, registry, controller, intake, pool, keys, parsers, *stores)


def _stores(url: str, settings: Settings) -> tuple[FileStore, BatchStore, Inspector, CommandSender]:
    keep_s = settings.file_days * _DAY_S
    limits = FileLimits(settings.max_files, settings.max_files_mb * _MIB, settings.max_all_files_mb * _MIB)
    files = FileStore(url, ttl_s=keep_s, limits=limits)
    batches = BatchStore(url, keep_s=keep_s, lease_s=_BATCH_LEASE_S, max_unfinished=settings.max_batches)
    return files, batches, Inspector(url), CommandSender(url)


@asynccontextmanager
async def _running(controller: Controller, registry: WorkerRegistry, keys: ApiKeys) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(controller.run(), name="controller"),
        asyncio.create_task(every(_REFRESH_S, registry.refresh), name="registry"),
        asyncio.create_task(every(_KEYS_REFRESH_S, keys.refresh), name="keys"),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _say_who_may_ask(keys: ApiKeys) -> None:
    if not keys.are_asked:
        logger.warning("no API key is asked: whoever reaches this port may use it")
    elif not keys.num_keys:
        logger.warning("there is no API key yet, so nobody may ask: make one with 'llava-serve keys create'")


def _picture_limits(settings: Settings) -> PictureLimits:
    return PictureLimits(max_pixels=settings.max_image_mp * 1_000_000, timeout_s=settings.image_timeout_s)


def _fetch_rules(settings: Settings) -> FetchRules:
    return FetchRules(
        hosts=frozenset(settings.image_hosts),
        allow_http=settings.image_allow_http,
        timeout_s=settings.image_fetch_timeout_s,
        max_bytes=settings.max_image_mb * _MIB,
    )
