"""Routes for GET /livez, /readyz and /metrics, and for the probes of other servers' tools."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.openapi.document import Operation
from llava_server.error_response import Error
from llava_server.image_store_report import image_store_problems
from llava_server.kernel_report import fallback_warnings, kernel_sources
from llava_server.lifespan import Services, is_admin, services_of
from llava_server.operator.health_response import Failed, Live, Load, NotReady, Ready, Version
from llava_server.package_version import package_version
from llava_server.response_model import JSONResponse
from llava_server.shard_report import shard_problems

__all__ = ["metrics_router", "router"]

_HEALTH = Operation(
    "A worker can process requests",
    Live,
    statuses=(),
    other_responses={503: (NotReady, "No request can be processed. The body lists the reasons.")},
)
router = APIRouter(tags=["health"])
metrics_router = APIRouter(tags=["health"])


@router.get(
    "/livez",
    summary="Liveness check",
)
@Operation(
    "The process is alive",
    Live,
    statuses=(),
    other_responses={500: (Failed, "The process has failed and must be restarted.")},
)
async def livez(request: Request) -> Response:
    """Return 200 while the controller loop is running, and 500 if the process must be restarted.

    The check also passes while the job queue is unavailable or the server is draining.
    """
    failure = services_of(request).controller.failure
    if failure:
        return JSONResponse(Failed(reasons=[failure]), 500)
    return JSONResponse(Live())


@router.get(
    "/readyz",
    summary="Readiness check",
)
@Operation(
    "The server accepts requests",
    Ready,
    statuses=(),
    other_responses={503: (NotReady, "The server is not ready. The body lists the reasons.")},
)
async def readyz(request: Request) -> Response:
    """Return 200 if the server should receive requests, otherwise 503 with the reasons.

    Possible reasons are that the server is draining, that the job queue is unavailable, or that no worker has
    registered yet and no model is started on demand. If all workers later exit, the server remains ready, so
    that clients receive its 503 responses, which have a Retry-After header. The admin port adds the error
    text from Redis, which can contain addresses and user names.
    """
    services = services_of(request)
    await services.registry.find_worker()
    reasons = _reasons(services, has_details=is_admin(request.app))
    if reasons:
        return JSONResponse(NotReady(reasons=reasons), 503)
    names = [model.name for model in services.registry.models]
    heartbeats = services.registry.heartbeats
    image_store = services.settings.image_store.get_secret_value()
    return JSONResponse(
        Ready(
            models=names,
            kernels={name: kernel_sources(heartbeats, name) for name in names},
            warnings=[
                *services.health.shard_problems(has_details=is_admin(request.app)),
                *(text for _, text in shard_problems(heartbeats, services.settings.shards)),
                *(text for _, text in image_store_problems(heartbeats, image_store)),
                *fallback_warnings(heartbeats, has_details=is_admin(request.app)),
            ],
        )
    )


@router.get("/health", summary="Health check")
@_HEALTH
async def health(request: Request) -> Response:
    """Return 200 if a request would be processed now, otherwise 503 with the reasons.

    Unlike /readyz, this check also fails if all workers have exited. Benchmarks and other tools that were
    written for vLLM or llama.cpp call it before they send requests.
    """
    services = services_of(request)
    await services.registry.find_worker()
    reasons = _reasons(services, has_details=is_admin(request.app))
    if not reasons and not services.registry.has_workers:
        reasons = ["No worker is currently running."]
    return JSONResponse(NotReady(reasons=reasons), 503) if reasons else JSONResponse(Live())


@router.get("/ping", summary="Health check for SageMaker")
@_HEALTH
async def ping(request: Request) -> Response:
    """Return the same response as /health."""
    return await health(request)


@router.post("/ping", summary="Health check for SageMaker")
@_HEALTH
async def post_ping(request: Request) -> Response:
    """Return the same response as /health. The request body is ignored."""
    return await health(request)


@router.get("/version", summary="Version of the server")
@Operation("The version", Version, statuses=())
async def version(_request: Request) -> Response:
    """Return the version of llava-serve."""
    return JSONResponse(Version(version=package_version()))


@router.get("/load", summary="Load of the server")
@Operation(
    "The load",
    Load,
    statuses=(),
    other_responses={
        401: (Error, "A valid API key is required."),
        503: (Error, "The API key cannot be checked, because the job queue is unavailable."),
    },
)
async def load(request: Request) -> Response:
    """Return the number of outputs that this server is currently sending or waiting for.

    Other servers that use the same queue are not included.
    """
    return JSONResponse(Load(server_load=services_of(request).controller.num_open))


@metrics_router.get("/metrics", summary="Prometheus metrics")
@Operation(
    "Successful Response",
    "text/plain",
    statuses=(),
    other_responses={
        401: (Error, "A valid API key is required."),
        503: (Error, "The API key cannot be checked, because the job queue is unavailable."),
    },
)
async def metrics(request: Request) -> Response:
    """Return all metrics in Prometheus text format 0.0.4.

    Names follow vLLM's conventions, with the prefix llava_.
    """
    return Response(services_of(request).metrics.exposition(), media_type="text/plain; version=0.0.4")


def _reasons(services: Services, *, has_details: bool) -> list[str]:
    reasons = ["The server is shutting down."] if services.shutdown.is_draining else []
    reasons += [problem] if (problem := services.health.problem(has_details=has_details)) else []
    reasons += [failure] if (failure := services.controller.failure) else []
    if not services.registry.accepts_requests:
        reasons.append("No worker has registered yet.")
    return reasons
