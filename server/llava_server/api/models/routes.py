"""GET /v1/models, served from memory, because many clients list the models before their first request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.anthropic.models import ModelInfo, ModelInfoList, to_model_info, to_model_page
from llava_server.api.models.response import Capabilities, Model, ModelList
from llava_server.api.openapi.document import Operation
from llava_server.error_response import Error, MessageError
from llava_server.kernel_report import kernel_sources
from llava_server.lifespan import services_of
from llava_server.middleware.server_error import uses_anthropic_format
from llava_server.response_model import JSONResponse
from llava_server.worker_registry import ServedModel, WorkerRegistry

__all__ = ["router"]

router = APIRouter(prefix="/v1/models", tags=["models"])

_MAX_PAGE = 1000
_MAX_ID = 256  # characters
ModelId = Annotated[str, Path(description="Name of the model.", examples=["tiny-llava"])]


@router.get("", summary="List models")
@Operation(
    "The models",
    ModelList | ModelInfoList,
    statuses=(400, 401, 500, 503),
    error=Error | MessageError,
    request_headers=("anthropic-version",),
)
async def list_models(
    request: Request,
    after_id: Annotated[
        str | None,
        Query(
            description="ID of the last model on the previous page. Only used in Anthropic's format.",
            max_length=_MAX_ID,
            examples=["tiny-llava"],
        ),
    ] = None,
    before_id: Annotated[
        str | None,
        Query(
            description="ID of the first model on the next page. Only used in Anthropic's format.",
            max_length=_MAX_ID,
            examples=["tiny-llava"],
        ),
    ] = None,
    limit: Annotated[
        int,
        Query(
            ge=1,
            le=_MAX_PAGE,
            description="Maximum number of models per page. Only used in Anthropic's format.",
            examples=[20],
        ),
    ] = 20,
) -> Response:
    """Returns all models that any worker has served since this server started.

    If ``num_workers`` is 0, no worker currently serves the model. If the header ``anthropic-version`` is set,
    the list has Anthropic's format.
    """
    registry = services_of(request).registry
    if uses_anthropic_format(request.scope):
        return JSONResponse(
            to_model_page(registry.models, after_id=after_id, before_id=before_id, limit=limit)
        )
    return JSONResponse(ModelList(data=[_to_response(model, registry) for model in registry.models]))


@router.get("/{model_id:path}", summary="Retrieve a model")
@Operation(
    "The model",
    Model | ModelInfo,
    statuses=(401, 404, 500, 503),
    error=Error | MessageError,
    request_headers=("anthropic-version",),
)
async def get_model(model_id: ModelId, request: Request) -> Response:
    """The model name may contain slashes.

    If the header ``anthropic-version`` is set, the response has Anthropic's format.
    """
    registry = services_of(request).registry
    if uses_anthropic_format(request.scope):
        return JSONResponse(to_model_info(registry.get(model_id)))
    return JSONResponse(_to_response(registry.get(model_id), registry))


def _to_response(model: ServedModel, registry: WorkerRegistry) -> Model:
    return Model(
        id=model.name,
        created=model.first_seen,
        max_model_len=model.context_length,
        num_workers=registry.num_workers(model.name),
        digest=model.digest or None,
        kernels=kernel_sources(registry.heartbeats, model.name),
        engine=model.engine.name if model.engine else None,
        batching=model.engine.batching if model.engine else None,
        capabilities=Capabilities(),
    )
