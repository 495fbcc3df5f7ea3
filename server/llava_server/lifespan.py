"""Services that exist as long as the app runs. They are closed in reverse order of creation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import ImageStoreUnavailable, QueueUnavailable
from llava_wire.operator.sharded_inspector import ShardedInspector
from llava_wire.operator.worker_commands import CommandSender
from llava_wire.stores.api_keys import ApiKeyStore
from llava_wire.stores.batches import BatchStore
from llava_wire.stores.files import FileLimits, FileStore
from llava_wire.stores.rate_limits import RateLimitStore
from llava_wire.stores.responses import ResponseLimits, ResponseStore
from starlette.requests import Request

from llava_server.engine_metrics import EngineCollector
from llava_server.event_loop import measure_stalls
from llava_server.fair_slots import FairSlots
from llava_server.fair_threads import FairThreads
from llava_server.generation.controller import Controller
from llava_server.images.decoder_pool import DecoderPool
from llava_server.images.errors import ImageLimits
from llava_server.images.fetch import FetchRules, ImageFetcher
from llava_server.images.loader import ImageLoader
from llava_server.loaded_data import LoadedData
from llava_server.metrics import Metrics
from llava_server.middleware.auth import ApiKeys
from llava_server.middleware.rate_limit import RateLimiter
from llava_server.on_demand_models import OnDemandModels
from llava_server.periodic import run_periodically
from llava_server.queue_health import QueueHealth
from llava_server.redis_budgets import RedisBudgets
from llava_server.settings import Settings
from llava_server.shutdown import GracefulShutdown
from llava_server.stages import Stages
from llava_server.supervised_tasks import SupervisedTasks
from llava_server.worker_registry import WorkerRegistry

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ["Services", "attach_services", "is_admin", "open_services", "services_of", "services_of_app"]

logger = logging.getLogger(__name__)

_REGISTRY_REFRESH_S = 1.0
_KEYS_REFRESH_S = 3.0  # a revoked key remains valid for up to this long; new keys are looked up on first use
_MEMORY_REFRESH_S = 5.0
_EXPIRED_IMAGES_S = 60.0
_MIB = 2**20
_DAY_S = 86400.0
_BATCH_LEASE_S = 5.0  # a server loses a batch if it does not renew its lease within this time


@dataclass(frozen=True, kw_only=True)
class Services:
    """Objects shared by routes and background tasks."""

    settings: Settings
    metrics: Metrics
    shutdown: GracefulShutdown
    api_keys: ApiKeys
    loaded_data: LoadedData
    rate_limiter: RateLimiter
    tracer: Tracer | None
    health: QueueHealth
    registry: WorkerRegistry
    controller: Controller
    image_loader: ImageLoader
    threads: FairThreads  # for bodies too large to parse in the event loop, and for hashing
    batch_slots: FairSlots  # for the requests of batches
    files: FileStore
    responses: ResponseStore
    batches: BatchStore
    batches_changed: asyncio.Event = field(default_factory=asyncio.Event)  # wakes the batch driver
    inspector: ShardedInspector
    commands: CommandSender


def attach_services(app: FastAPI, services: Services, *, is_admin: bool = False) -> None:
    """Store the services in the app's state, so that its routes can access them."""
    app.state.services = services
    app.state.is_admin = is_admin


def is_admin(app: FastAPI) -> bool:
    """Return whether this app serves operators on the admin port, and not clients."""
    return bool(app.state.is_admin)


def services_of(request: Request) -> Services:
    """Return the services of the app that serves this request."""
    return services_of_app(request.app)


def services_of_app(app: FastAPI) -> Services:
    """Return the services of an app. Raises RuntimeError if the app has not started."""
    services = getattr(app.state, "services", None)
    if not isinstance(services, Services):
        raise RuntimeError("The app has no services: its lifespan has not started.")
    return services


@asynccontextmanager
async def open_services(
    settings: Settings,
    metrics: Metrics,
    shutdown: GracefulShutdown,
    api_keys: ApiKeys,
    loaded_data: LoadedData,
    rate_limiter: RateLimiter,
    tracer: Tracer | None,
) -> AsyncIterator[Services]:
    """Connect to the queue and start the image decoders and periodic tasks. Raises QueueUnavailable."""
    url = settings.redis_url.get_secret_value()
    async with AsyncExitStack() as stack:
        inspector = await stack.enter_async_context(aclosing(ShardedInspector(settings.shards)))
        budgets = await _redis_budgets(inspector, settings, metrics)
        producer = await stack.enter_async_context(aclosing(await _connect(settings, budgets)))
        key_store = await stack.enter_async_context(aclosing(ApiKeyStore(url)))
        rate_limit_store = await stack.enter_async_context(aclosing(RateLimitStore(url)))
        files, responses, batches = await _open_stores(stack, url, settings, budgets)
        commands = await stack.enter_async_context(aclosing(CommandSender(settings.shards[0].url)))
        stages = Stages(settings, metrics, lambda tenant: api_keys.limits(tenant).weight)
        threads = stack.enter_context(closing(FairThreads(stages.threads)))
        image_loader = await stack.enter_async_context(_image_loader(settings, metrics, stages, threads))
        api_keys.attach(key_store)
        rate_limiter.attach(rate_limit_store)
        stores = (key_store, rate_limit_store, files, responses, batches)
        metrics.set_redis_errors((producer, *stores, inspector, commands))
        metrics.set_image_store_errors(lambda: producer.num_image_store_errors)
        tasks = await stack.enter_async_context(aclosing(SupervisedTasks(metrics.task_crashed)))
        health = QueueHealth(metrics, num_shards=len(settings.shards))
        on_demand = OnDemandModels(settings.on_demand_models, shutdown, timeout_s=settings.queue_timeout_s)
        registry = WorkerRegistry(producer, metrics, health, on_demand)
        timeouts = {"queue_timeout_s": settings.queue_timeout_s, "orphan_grace_s": settings.orphan_grace_s}
        controller = Controller(producer, metrics, rate_limiter, health, tasks, **timeouts)
        await asyncio.gather(registry.refresh(), api_keys.refresh())
        _warn_about_access(api_keys)
        stack.enter_context(_engine_metrics(metrics, registry))
        controller.start()
        _start_tasks(tasks, metrics, registry, api_keys, inspector)
        _start_image_removal(tasks, settings, producer)
        yield Services(
            settings=settings,
            metrics=metrics,
            shutdown=shutdown,
            api_keys=api_keys,
            loaded_data=loaded_data,
            rate_limiter=rate_limiter,
            tracer=tracer,
            health=health,
            registry=registry,
            controller=controller,
            image_loader=image_loader,
            threads=threads,
            batch_slots=stages.batches,
            files=files,
            responses=responses,
            batches=batches,
            inspector=inspector,
            commands=commands,
        )


def _start_tasks(
    tasks: SupervisedTasks,
    metrics: Metrics,
    registry: WorkerRegistry,
    api_keys: ApiKeys,
    inspector: ShardedInspector,
) -> None:
    refresh_memory = partial(_report_memory, inspector, metrics)
    tasks.start("event loop stalls", partial(measure_stalls, metrics))
    tasks.start("registry", partial(run_periodically, _REGISTRY_REFRESH_S, registry.refresh))
    tasks.start("keys", partial(run_periodically, _KEYS_REFRESH_S, api_keys.refresh))
    tasks.start("memory", partial(run_periodically, _MEMORY_REFRESH_S, refresh_memory))


def _start_image_removal(tasks: SupervisedTasks, settings: Settings, producer: ShardedProducer) -> None:
    if settings.image_store.get_secret_value():
        remove_images = partial(_remove_expired_images, producer)
        tasks.start("expired images", partial(run_periodically, _EXPIRED_IMAGES_S, remove_images))


async def _redis_budgets(inspector: ShardedInspector, settings: Settings, metrics: Metrics) -> RedisBudgets:
    memory = await inspector.memory()
    image_store_bytes = 0
    try:
        image_store_bytes = await inspector.image_capacity_bytes()
    except ImageStoreUnavailable as error:  # requests without images do not need it
        logger.warning("%s", error)
    budgets = RedisBudgets.derive(settings, memory.limit_bytes, image_store_bytes)
    if problem := budgets.problem(memory.limit_bytes):
        logger.warning("%s", problem)
    metrics.set_redis_budgets(budgets.sizes)
    return budgets


async def _report_memory(inspector: ShardedInspector, metrics: Metrics) -> None:
    with suppress(QueueUnavailable):  # logged by QueueHealth
        metrics.set_redis_memory(await inspector.memory())


async def _remove_expired_images(producer: ShardedProducer) -> None:
    with suppress(ImageStoreUnavailable):  # counted by the store
        await producer.remove_expired_images()


async def _connect(settings: Settings, budgets: RedisBudgets) -> ShardedProducer:
    return await ShardedProducer.connect(
        settings.shards,
        max_queued=settings.max_queued,
        max_queued_cost=settings.max_queued_tokens,
        max_tenant_jobs=settings.max_tenant_jobs,
        max_tenant_cost=settings.max_tenant_tokens,
        max_pixel_bytes=budgets.images,
        max_job_bytes=budgets.jobs,
        lease_s=settings.lease_s,
        orphan_grace_s=settings.orphan_grace_s,
    )


async def _open_stores(
    stack: AsyncExitStack, url: str, settings: Settings, budgets: RedisBudgets
) -> tuple[FileStore, ResponseStore, BatchStore]:
    """Open the stores of the data that clients store on the server. The stack closes them."""
    limits = FileLimits(settings.max_files, settings.max_files_mb * _MIB, budgets.files)
    file_store = FileStore(url, ttl_s=settings.file_days * _DAY_S, limits=limits)
    response_limits = ResponseLimits(settings.max_stored_mb * _MIB, budgets.stored_responses)
    response_store = ResponseStore(url, ttl_s=settings.stored_days * _DAY_S, limits=response_limits)
    files = await stack.enter_async_context(aclosing(file_store))
    responses = await stack.enter_async_context(aclosing(response_store))
    batches = await stack.enter_async_context(aclosing(_batch_store(url, settings, limits)))
    return files, responses, batches


def _batch_store(url: str, settings: Settings, limits: FileLimits) -> BatchStore:
    return BatchStore(
        url,
        keep_s=settings.file_days * _DAY_S,
        lease_s=_BATCH_LEASE_S,
        max_unfinished=settings.max_batches,
        limits=limits,
    )


@asynccontextmanager
async def _image_loader(
    settings: Settings, metrics: Metrics, stages: Stages, threads: FairThreads
) -> AsyncIterator[ImageLoader]:
    max_bytes = settings.max_image_mb * _MIB
    limits = ImageLimits(max_pixels=settings.max_image_mp * 1_000_000)
    fetch_rules = FetchRules(
        hosts=frozenset(settings.image_hosts),
        allow_http=settings.image_allow_http,
        timeout_s=settings.image_fetch_timeout_s,
        max_bytes=max_bytes,
    )
    decoders = DecoderPool(
        slots=stages.decoding,
        limits=limits,
        transparency=settings.image_transparency,
        count_crash=metrics.task_crashed,
    )
    async with aclosing(decoders) as pool:
        await pool.start()
        yield ImageLoader(
            pool,
            ImageFetcher(fetch_rules, stages.fetching),
            threads,
            metrics,
            max_bytes=max_bytes,
            cache_bytes=settings.image_cache_mb * _MIB,
        )


@contextmanager
def _engine_metrics(metrics: Metrics, registry: WorkerRegistry) -> Iterator[None]:
    collector = EngineCollector(registry)
    metrics.registry.register(collector)
    try:
        yield
    finally:
        metrics.registry.unregister(collector)


def _warn_about_access(api_keys: ApiKeys) -> None:
    if not api_keys.is_required:
        logger.warning("authentication is disabled: any client that can connect to this port can use the API")
    elif not api_keys.num_keys:
        logger.warning("no API key exists: create one with 'llava-serve keys create'")
