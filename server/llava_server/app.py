"""The app: middlewares in the order in which a request meets them, routes, start and end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.anthropic import routes as messages
from llava_server.api.batches import routes as batches
from llava_server.api.batches.line_runner import batches_driven
from llava_server.api.chat import routes as chat
from llava_server.api.chat import stored_routes as answers
from llava_server.api.completions import routes as completions
from llava_server.api.embeddings import routes as embeddings
from llava_server.api.files import routes as files
from llava_server.api.models import routes as models
from llava_server.api.openapi.document import described
from llava_server.api.parse import parameter_error
from llava_server.api.responses import routes as responses
from llava_server.api.tokenize import routes as tokens
from llava_server.errors import ApiError
from llava_server.generation.disconnect import ClientDisconnected
from llava_server.lifespan import open_services
from llava_server.middleware.auth import ApiKeys, Authentication, is_public
from llava_server.middleware.body_limit import Admission, AdmissionLimits
from llava_server.middleware.rate_limit import RateLimiter, RateLimits
from llava_server.middleware.request_id import ErrorNet, RequestIds, error_response
from llava_server.middleware.tracing import TracedRequests, tracing_opened
from llava_server.operator import health
from llava_server.playground import routes as playground
from llava_server.request_metrics import Metrics
from llava_server.settings import Settings
from llava_server.shutdown import Drain

__all__ = ["create_app"]

_MIB = 2**20
_CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it but the log


def create_app(settings: Settings) -> FastAPI:
    """An app that owns nothing until its lifespan begins."""
    metrics = Metrics()
    drain = Drain(grace_s=settings.drain_grace_s, timeout_s=settings.drain_timeout_s)
    keys = ApiKeys((key.get_secret_value() for key in settings.api_keys), are_asked=settings.auth)
    limiter = RateLimiter(keys)
    limits = AdmissionLimits(
        max_open=settings.max_open_requests,
        max_body_bytes=settings.max_body_mb * _MIB,
        max_inflight_bytes=settings.max_inflight_body_mb * _MIB,
        body_timeout_s=settings.body_timeout_s,
    )
    app = FastAPI(
        title="llava-serve",
        summary="OpenAI-style chat about pictures, answered by LLaVA.",
        version=_version(),
        lifespan=_lifespan(settings, metrics, drain, keys, limiter),
        middleware=[
            Middleware(RequestIds),
            *([Middleware(TracedRequests)] if settings.otel else []),
            Middleware(ErrorNet),
            Middleware(Authentication, keys=keys),
            Middleware(RateLimits, limiter=limiter),
            Middleware(Admission, limits=limits, drain=drain, metrics=metrics),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_exception,
            RequestValidationError: _on_wrong_parameter,
            ClientDisconnected: _on_client_gone,
        },
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    app.state.drain = drain
    for routes in (
        chat,
        answers,
        responses,
        messages,
        completions,
        embeddings,
        tokens,
        files,
        batches,
        models,
    ):
        app.include_router(routes.router)
    for routes in (health, playground):
        app.include_router(routes.router)
    if settings.admin_port is None:
        app.include_router(health.metrics_router)
    app.openapi_schema = described(
        app.openapi(), needs_key=lambda path: settings.auth and not is_public(path)
    )
    return app


def _lifespan(settings: Settings, metrics: Metrics, drain: Drain, keys: ApiKeys, limiter: RateLimiter) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if settings.otel:
                await stack.enter_async_context(tracing_opened(app))
            services = await stack.enter_async_context(open_services(settings, metrics, drain, keys, limiter))
            app.state.services = services
            tracer = app.state.tracer if settings.otel else None
            app.state.batch_driver = await stack.enter_async_context(
                batches_driven(services, limiter, tracer)
            )
            yield

    return lifespan


async def _on_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error_response(request.scope, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The router's own refusals, in our words. Nothing else here raises HTTPException."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        refused = ApiError("method_not_allowed", f"{request.method} is not possible here; use {allowed}")
    elif error.status_code == 404:
        refused = ApiError("unknown_url", "there is nothing at this address; see /docs for what there is")
    else:
        raise error
    response = error_response(request.scope, refused)
    response.headers.update(error.headers or {})
    return response


async def _on_wrong_parameter(request: Request, error: Exception) -> Response:
    """Of a path or a query; bodies are parsed by us."""
    if not isinstance(error, RequestValidationError):
        raise error
    return error_response(request.scope, parameter_error(error.errors()[0]))


async def _on_client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


def _version() -> str:
    try:
        return version("llava-serve")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0.0.0"
