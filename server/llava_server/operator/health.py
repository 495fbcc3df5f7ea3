"""GET /livez, /readyz and /metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.openapi.document import Operation
from llava_server.error_response import Error
from llava_server.lifespan import Services, services_of
from llava_server.operator.health_response import Failed, Live, NotReady, Ready
from llava_server.response_model import JSONResponse

__all__ = ["metrics_router", "router"]

router = APIRouter(tags=["health"])
metrics_router = APIRouter(tags=["health"])


@router.get(
    "/livez",
    summary="Is the process of any use?",
)
@Operation("It is", Live, statuses=(), other_responses={500: (Failed, "It is of none: restart it.")})
async def livez(request: Request) -> Response:
    """200 while the controller's loop runs, also without a queue or while draining; 500: restart it."""
    failure = services_of(request).controller.failure
    if failure:
        return JSONResponse(Failed(reasons=[failure]), 500)
    return JSONResponse(Live())


@router.get(
    "/readyz",
    summary="Should requests be sent here?",
)
@Operation("Yes", Ready, statuses=(), other_responses={503: (NotReady, "Not now; the reasons are listed.")})
async def readyz(request: Request) -> Response:
    """503 with the reasons while draining, without the queue, and until the first worker has been seen.

    Workers that go later do not make this server unready: its 503 with Retry-After says more than a closed
    door.
    """
    services = services_of(request)
    reasons = _reasons(services)
    if reasons:
        return JSONResponse(NotReady(reasons=reasons), 503)
    return JSONResponse(Ready(models=[model.name for model in services.registry.models]))


@metrics_router.get("/metrics", summary="Numbers for Prometheus")
@Operation(
    "Successful Response",
    "text/plain",
    statuses=(),
    other_responses={401: (Error, "A valid key is needed.")},
)
async def metrics(request: Request) -> Response:
    """Text format 0.0.4; names as vLLM's with the prefix llava_."""
    return Response(services_of(request).metrics.exposition(), media_type="text/plain; version=0.0.4")


def _reasons(services: Services) -> list[str]:
    reasons = ["this server is shutting down"] if services.shutdown.is_draining else []
    reasons += [error] if (error := services.registry.queue_error) else []
    reasons += [failure] if (failure := services.controller.failure) else []
    if not services.registry.models:
        reasons.append("no worker has been seen yet")
    return reasons
