"""The FastAPI app: middleware (in the order in which requests pass through it), routes and lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial

from fastapi import APIRouter, Depends, FastAPI
from starlette.middleware import Middleware

from llava_server.api.anthropic import routes as anthropic
from llava_server.api.batches import routes as batches
from llava_server.api.batches.driver import run_batches
from llava_server.api.chat import routes as chat
from llava_server.api.chat import stored_routes as stored_chats
from llava_server.api.compatibility.queries import check_query
from llava_server.api.completions import routes as completions
from llava_server.api.embeddings import routes as embeddings
from llava_server.api.files import routes as files
from llava_server.api.models import routes as models
from llava_server.api.ollama import model_routes as ollama_models
from llava_server.api.ollama import routes as ollama
from llava_server.api.openapi.document import build_document
from llava_server.api.openapi.headers import HEADERS
from llava_server.api.openapi.routes import reference_router
from llava_server.api.output_saver import run_saver
from llava_server.api.responses import item_routes as response_items
from llava_server.api.responses import routes as responses
from llava_server.api.tokenize import routes as tokenize
from llava_server.exception_handlers import EXCEPTION_HANDLERS
from llava_server.lifespan import attach_services, open_services
from llava_server.loaded_data import LoadedData
from llava_server.metrics import Metrics
from llava_server.middleware.auth import ApiKeys, AuthMiddleware, is_public
from llava_server.middleware.cors import cors_middleware
from llava_server.middleware.head import HeadMiddleware
from llava_server.middleware.hosts import HostMiddleware, api_host_rules
from llava_server.middleware.open_requests import OpenRequests, RequestBudget
from llava_server.middleware.origins import OriginMiddleware
from llava_server.middleware.paths import PathMiddleware
from llava_server.middleware.rate_limit import RateLimiter, RateLimitMiddleware
from llava_server.middleware.request_id import RequestIdMiddleware
from llava_server.middleware.request_limits import BodyLimits, RequestLimitMiddleware
from llava_server.middleware.response_headers import ResponseHeadersMiddleware
from llava_server.middleware.server_error import ServerErrorMiddleware
from llava_server.middleware.tracing import TracingMiddleware
from llava_server.middleware.turns import Turns
from llava_server.operator import demo, health
from llava_server.package_version import package_version
from llava_server.playground import routes as playground
from llava_server.settings import Settings
from llava_server.shutdown import GracefulShutdown
from llava_server.tracing import Tracing

__all__ = ["create_app"]

_MIB = 2**20
_ROUTES = (
    *(
        chat,
        stored_chats,
        responses,
        response_items,
        anthropic,
        completions,
        embeddings,
        tokenize,
        files,
        batches,
        models,
    ),
    *(ollama, ollama_models, health, playground),
)


def create_app(
    settings: Settings, shutdown: GracefulShutdown | None = None, metrics: Metrics | None = None
) -> FastAPI:
    """Create the app. Its lifespan opens connections and starts processes and background tasks."""
    metrics = metrics or Metrics()
    shutdown = shutdown or GracefulShutdown(
        grace_s=settings.drain_grace_s, timeout_s=settings.drain_timeout_s
    )
    api_keys = ApiKeys((key.get_secret_value() for key in settings.api_keys), is_required=settings.auth)
    rate_limiter = RateLimiter(api_keys)
    turns = Turns(metrics, lambda tenant: api_keys.limits(tenant).weight)
    tracing = Tracing()
    open_requests = OpenRequests(_request_budget(settings))
    loaded_data = LoadedData(open_requests, api_keys.limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if settings.otel:
                await stack.enter_async_context(tracing.open())
            services = await stack.enter_async_context(
                open_services(
                    settings, metrics, shutdown, api_keys, loaded_data, rate_limiter, tracing.tracer
                )
            )
            attach_services(app, services)
            await stack.enter_async_context(run_saver(services))
            await stack.enter_async_context(run_batches(services))
            yield

    app = FastAPI(
        dependencies=[Depends(check_query)],
        title="llava-serve",
        summary="OpenAI-compatible inference server for LLaVA vision-language models.",
        version=package_version(),
        lifespan=lifespan,
        middleware=[
            Middleware(RequestIdMiddleware, metrics=metrics),
            Middleware(ResponseHeadersMiddleware),
            Middleware(PathMiddleware),
            *cors_middleware(settings.cors_origins, exposed_headers=HEADERS),
            *_browser_checks(settings),
            *([Middleware(TracingMiddleware, tracing=tracing)] if settings.otel else []),
            Middleware(ServerErrorMiddleware),
            Middleware(AuthMiddleware, keys=api_keys, turns=turns),
            Middleware(RateLimitMiddleware, limiter=rate_limiter),
            _request_limits(settings, open_requests, loaded_data, api_keys, shutdown, metrics),
            Middleware(HeadMiddleware),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_url=None,
        redirect_slashes=False,
    )
    _include_routes(app, settings)
    return app


def _request_limits(
    settings: Settings,
    open_requests: OpenRequests,
    loaded_data: LoadedData,
    keys: ApiKeys,
    shutdown: GracefulShutdown,
    metrics: Metrics,
) -> Middleware:
    """Return the middleware that limits open requests and their data."""
    return Middleware(
        RequestLimitMiddleware,
        limits=BodyLimits(max_body_bytes=settings.max_body_mb * _MIB, timeout_s=settings.body_timeout_s),
        open_requests=open_requests,
        loaded_data=loaded_data,
        keys=keys,
        shutdown=shutdown,
        metrics=metrics,
    )


def _request_budget(settings: Settings) -> RequestBudget:
    return RequestBudget(
        max_requests=settings.max_open_requests,
        max_bytes=settings.max_inflight_body_mb * _MIB,
        max_tenant_requests=settings.max_tenant_requests,
        max_tenant_bytes=settings.max_tenant_inflight_body_mb * _MIB,
    )


def _browser_checks(settings: Settings) -> list[Middleware]:
    """Return the middleware that restricts which hosts and web pages can be used to access the server.

    If API keys are required, pages of other origins are harmless, because browsers do not add a key to their
    requests. A page to which a user has given a key can use it, for example as a browser extension.
    """
    rules = api_host_rules(settings.allowed_hosts, host=settings.host, has_auth=settings.auth)
    checks = [] if rules is None else [Middleware(HostMiddleware, rules=rules)]
    if not settings.auth:
        checks.append(Middleware(OriginMiddleware, origins=settings.cors_origins))
    return checks


def _include_routes(app: FastAPI, settings: Settings) -> None:
    routers = [routes.router for routes in _ROUTES]
    if settings.admin_port is None and settings.processes == 1:  # else it would be that of any process
        routers.append(health.metrics_router)
    for router in routers:
        app.include_router(router)
    if settings.demo_socket is not None:
        app.include_router(demo.router)
    _build_document_on_first_use(app, routers, settings)
    app.include_router(reference_router(app.openapi))


def _build_document_on_first_use(app: FastAPI, routers: Sequence[APIRouter], settings: Settings) -> None:
    """Replace the function that returns the OpenAPI document, which takes 0.2 s to build."""
    build = partial(
        build_document, app, routers, needs_key=lambda path: settings.auth and not is_public(path)
    )
    app.openapi = cache(build)  # type: ignore[method-assign]
